"""What the controller says about itself on `/diagnostics` and `~/state`."""

from typing import TYPE_CHECKING, Final

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from volar.robots import loop_state as ls

if TYPE_CHECKING:
    from volar.robots.ros2.control_thread import ControlThread
    from volar.robots.ros2.ros2_body import Ros2Body

# What a driver, a camera or the network does wrong is an error; what ends by itself, a warning.
_LEVELS: Final = {ls.RUNNING: DiagnosticStatus.OK, ls.PAUSED: DiagnosticStatus.OK, ls.HOLDING: DiagnosticStatus.WARN}


def report(name: str, node_state: str, thread: "ControlThread | None", body: "Ros2Body | None") -> DiagnosticArray:
    """The status of the whole node, as one message. `node_state`: of its lifecycle."""
    status = DiagnosticStatus(name=f"{name}: control loop", hardware_id=body.spec.name if body else "")
    values = {"lifecycle": node_state}
    status.level, status.message = DiagnosticStatus.OK, node_state
    if thread is not None:
        status.level, status.message = _verdict(thread, body)
        values |= figures(thread)
    if body is not None:
        values |= {f"problem with {topic}": what for topic, what in sorted(body.problems.items())}
        if body.waits_for:
            values["waits for"] = ", ".join(body.waits_for)
    status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticArray(status=[status])


def figures(thread: "ControlThread") -> dict[str, str]:
    """State, reason, period, latency and the policy's health, as text."""
    loop, source = thread.loop, thread.source
    values = {
        "state": loop.mode.state,
        "reason": thread.reason or "",
        "instruction": loop.instruction,
        "ticks": str(thread.ticks),
        "last refused chunk": thread.last_refused or "",
        "policy restarts": str(source.restarts),
        "policy failure": source.failure or "",
    }
    for title, percentile in (("period error", thread.period_error_s), ("camera to command", loop.latency_s)):
        for percent in (50.0, 99.0):
            if (seconds := percentile.at(percent)) is not None:
                values[f"{title} p{percent:.0f} [ms]"] = f"{1e3 * seconds:.2f}"
    if thread.recorder is not None:
        values["recording: dropped"] = str(thread.recorder.dropped)
    return values


def _verdict(thread: "ControlThread", body: "Ros2Body | None") -> tuple[bytes, str]:
    if thread.error:
        return DiagnosticStatus.ERROR, thread.error
    if not thread.started:
        return DiagnosticStatus.WARN, f"waits for {', '.join(body.waits_for) if body else 'the robot'}"
    state = thread.loop.mode.state
    message = f"{state}: {thread.reason}" if thread.reason else state
    return _LEVELS.get(state, DiagnosticStatus.ERROR), message
