"""What the controller says about itself on `/diagnostics` and `~/state`."""

from typing import TYPE_CHECKING, Final

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from volar.robots import loop_state as ls

if TYPE_CHECKING:
    from volar.robots.ros2.control_thread import ControlThread
    from volar.robots.ros2.ros2_body import Ros2Body

CEASED: Final = "ceased: the arm rests where it is, until it may move again"
# What a driver, a camera or the network does wrong is an error; what ends by itself, a warning.
_LEVELS: Final = {ls.RUNNING: DiagnosticStatus.OK, ls.PAUSED: DiagnosticStatus.OK, ls.HOLDING: DiagnosticStatus.WARN}


def report(name: str, node_state: str, thread: "ControlThread | None", body: "Ros2Body | None") -> DiagnosticArray:
    """The status of the whole node, as one message. `node_state`: of its lifecycle."""
    status = DiagnosticStatus(name=f"{name}: control loop", hardware_id=body.spec.name if body else "")
    values = {"lifecycle": node_state}
    status.level, status.message = DiagnosticStatus.OK, node_state
    if thread is not None:
        status.level, status.message = _verdict(thread)
        values |= figures(thread)
    if body is not None:
        values |= {f"problem with {topic}": what for topic, what in sorted(body.problems.copy().items()) if what}
    waiting = body if thread is None else None if thread.started else thread
    if waiting is not None and (waits_for := waiting.waits_for):
        values["waits for"] = ", ".join(waits_for)
    status.values = [KeyValue(key=key, value=value) for key, value in values.items()]
    return DiagnosticArray(status=[status])


def figures(thread: "ControlThread") -> dict[str, str]:
    """State, reason, period, latency, ages of what was heard, and the policy's health, as text."""
    loop, source = thread.loop, thread.source
    values = {
        "state": loop.mode.state,
        "reason": thread.reason or "",
        "instruction": loop.instruction,
        "ticks": str(thread.ticks),
        "commands": CEASED if thread.ceased else "sent" if thread.ticks else "none yet",
        "last refused chunk": thread.last_refused or "",
        "last error": thread.last_error,
        "scheduling": "real-time" if thread.real_time else "normal",
        "policy restarts": str(source.restarts),
        "policy error": source.error or "",
        "policy failure": source.failure or "",
    }
    for title, percentile in (("period error", thread.period_error_s), ("camera to command", loop.latency_s)):
        for percent in (50.0, 99.0):
            if (seconds := percentile.at(percent)) is not None:
                values[f"{title} p{percent:.0f} [ms]"] = f"{1e3 * seconds:.2f}"
    now_ns = thread.clock.now_ns()
    for camera, stamp_ns in thread.body.image_stamps().items():
        values[f"camera {camera} age [ms]"] = f"{(now_ns - stamp_ns) / 1e6:.1f}"
    if thread.recorder is not None:
        values["recording: dropped"] = str(thread.recorder.dropped)
    return values


def _verdict(thread: "ControlThread") -> tuple[bytes, str]:
    if thread.error:
        return DiagnosticStatus.ERROR, thread.error
    if not thread.started:
        return DiagnosticStatus.WARN, f"waits for {', '.join(thread.waits_for) or 'the first tick'}"
    state = thread.loop.mode.state
    message = f"{state}: {thread.reason}" if thread.reason else state
    return _LEVELS.get(state, DiagnosticStatus.ERROR), message
