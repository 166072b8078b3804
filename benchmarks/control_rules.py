"""One trace of late, lost and noisy chunks, and what each way of executing chunks makes of it.

    python -P benchmarks/control_rules.py [--seconds 120] [--latency-ms 50 150 300]

On a virtual clock, FR3, 100 commands a second. Chunks of 16 displacements at 10 Hz follow a circle at 0.2 m/s from
where the hand was seen; each is off by its own error, as a policy's are. Latency is the base, with 3 % of spikes up to
1 s; 10 % of replies are lost, which is noticed after half a second. The rules beside ours are written from what the
tools do, with the benefit of a controller that interpolates: commands move at the action's velocity, they do not jump
once a step.

    lerobot     async client of LeRobot 0.6: queue by time step, 0.3 old + 0.7 new, asks at half a chunk; empty: nothing
    trajectory  each new chunk replaces the last and runs from its beginning, as a JointTrajectory does
    blocking    the chunk is executed to its end, then the policy is asked, and the arm waits (openpi's simplest client)
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from volar.robots.body import JointCommand, JointState
from volar.robots.control_loop import ControlLoop
from volar.robots.fr3 import FR3
from volar.robots.interface import ActionChunk, Observation
from volar.robots.kinematics import Arm
from volar.robots.spec import RobotSpec

Array = NDArray[np.float64]
TICK_NS, STEP_NS, HORIZON = 10_000_000, 100_000_000, 16
SPEED_M_S, RADIUS_M, CENTRE, PULL_PER_S = 0.2, 0.08, np.array([0.45, 0.0, 0.25]), 1.5
SPIKES, LOST, LOST_AFTER_S = 0.03, 0.10, 0.5


class Trace:
    """What the policy answers, and when: the k-th request gets the same everywhere."""

    def __init__(self, latency_s: float, seed: int = 0, count: int = 20_000) -> None:
        rng = np.random.default_rng(seed)
        self.latency_s = np.maximum(latency_s + rng.normal(0, 0.005, count), 0.001)
        spikes = rng.random(count) < SPIKES
        self.latency_s[spikes] = rng.uniform(0.5, 1.0, spikes.sum())
        self.lost = rng.random(count) < LOST
        self.error = rng.normal(0, 0.15, (count, 3))  # of the velocity, as a share of its size

    def chunk(self, k: int, stamp_ns: int, position: Array) -> ActionChunk:
        """The answer to the k-th request, about the moment `stamp_ns`, at which the hand was at `position` (3,)."""
        times = (stamp_ns + STEP_NS * np.arange(HORIZON)) / 1e9
        angle, zero = SPEED_M_S / RADIUS_M * times, np.zeros(HORIZON)
        velocity = SPEED_M_S * np.stack([-np.sin(angle), np.cos(angle), zero], axis=1)
        off = CENTRE + RADIUS_M * np.array([np.cos(angle[0]), np.sin(angle[0]), 0.0]) - position
        pull = PULL_PER_S * off * np.exp(-PULL_PER_S * (times - times[0]))[:, None]
        actions = np.zeros((HORIZON, 7), np.float32)
        actions[:, :3] = (velocity + pull + SPEED_M_S * self.error[k]) * STEP_NS / 1e9
        actions[:, :3] = np.clip(actions[:, :3], FR3.action.low[:3], FR3.action.high[:3])
        actions[:, 6] = 1.0
        return ActionChunk(actions, stamp_ns, STEP_NS / 1e9)


class TraceSource:
    """The trace as a `ChunkSource`."""

    def __init__(self, trace: Trace) -> None:
        self._trace, self._requests = trace, 0
        self._due_ns, self._chunk, self._lost = 0, None, False  # type: int, ActionChunk | None, bool

    @property
    def pending(self) -> bool:
        return self._chunk is not None

    def submit(self, observation: Observation) -> None:
        k, self._requests = self._requests, self._requests + 1
        self._lost = bool(self._trace.lost[k])
        wait_s = LOST_AFTER_S if self._lost else self._trace.latency_s[k]
        self._due_ns = observation.stamp_ns + round(wait_s * 1e9)
        self._chunk = self._trace.chunk(k, observation.stamp_ns, observation.state[:3].astype(np.float64))

    def poll(self, now_ns: int) -> ActionChunk | None:
        if self._chunk is None or now_ns < self._due_ns:
            return None
        chunk, self._chunk = self._chunk, None
        return None if self._lost else chunk


class ExactBody:
    """Does what it is told, at once."""

    def __init__(self) -> None:
        self.now_ns, self.image = 0, np.zeros((8, 8, 3), np.uint8)
        self.commands: list[JointCommand] = []
        self._state = JointState(np.array(FR3.home), np.zeros(7), FR3.gripper_width_max, 0)

    @property
    def spec(self) -> RobotSpec:
        return FR3

    def joint_state(self) -> JointState:
        return JointState(self._state.q, self._state.dq, self._state.gripper_width_m, self.now_ns)

    def images(self) -> dict[str, NDArray[np.uint8]]:
        self.image = self.image + 1
        return dict.fromkeys(FR3.cameras, self.image)

    def send(self, command: JointCommand) -> None:
        self.commands.append(command)
        self._state = JointState(command.q, command.dq, command.gripper_width_m, self.now_ns)


def ours(trace: Trace, ticks: int) -> tuple[Array, NDArray[np.bool_], int]:
    """Commands (T, 7), the ticks in which a chunk arrived (T,), and how many had no command."""
    body, arrived = ExactBody(), np.zeros(ticks, bool)
    loop = ControlLoop(body, Arm(FR3), FR3.action, TraceSource(trace), execute_steps=2)
    loop.reset(0)
    for i in range(ticks):
        body.now_ns = i * TICK_NS
        report = loop.tick(body.now_ns)
        arrived[i] = report.chunk is not None and report.refused is None
    return np.stack([command.q for command in body.commands]), arrived, ticks - len(body.commands)


Rule = Callable[["Client", int], "Array | None"]


class Client:
    """A client without our loop: asks, receives, and moves at the velocity of the action in force."""

    def __init__(self, trace: Trace) -> None:
        self.source, self.memory = TraceSource(trace), dict[str, Any]()
        self.position = np.zeros(3)

    def ask(self, now_ns: int) -> None:
        if not self.source.pending:
            self.source.submit(Observation({}, self.position.astype(np.float32), "", now_ns))


def lerobot(client: Client, now_ns: int) -> Array | None:
    """Once a step of 0.1 s: the next action, if there is one, then the question, if half a chunk or less is left.

    Steps count actions that were executed, not time: with an empty queue the count stands still, and what comes late
    is executed late. A chunk replaces the queue; where both have a step, the two are averaged. Its first action has
    the step that was executed last when it was asked for, so that it never is.
    """
    memory = client.memory
    queue, latest = memory.setdefault("queue", {}), memory.setdefault("latest", -1)
    chunk = client.source.poll(now_ns)
    if chunk is not None:
        steps = zip(range(memory["asked"], memory["asked"] + HORIZON), chunk.actions.astype(np.float64), strict=True)
        new = {step: action for step, action in steps if step > latest}
        queue = {step: 0.3 * queue[step] + 0.7 * action if step in queue else action for step, action in new.items()}
        memory |= {"queue": queue, "arrived": True}
    if now_ns % STEP_NS == 0:
        memory["action"] = None
        if queue:
            memory["latest"] = min(queue)
            memory["action"] = queue.pop(memory["latest"])
        if len(queue) <= HORIZON // 2 and not client.source.pending:
            memory["asked"] = max(memory["latest"], 0)
            client.ask(now_ns)
    action: Array | None = memory["action"]
    return action


def trajectory(client: Client, now_ns: int) -> Array | None:
    """The newest chunk, from its beginning since it came; asked every 0.2 s."""
    chunk = client.source.poll(now_ns)
    if chunk is not None:
        client.memory |= {"chunk": chunk, "since": now_ns, "arrived": True}
    if now_ns - client.memory.get("asked", -STEP_NS * 2) >= 2 * STEP_NS and not client.source.pending:
        client.memory["asked"] = now_ns
        client.ask(now_ns)
    if "chunk" not in client.memory:
        return None
    index = (now_ns - client.memory["since"]) // STEP_NS
    return client.memory["chunk"].actions[index].astype(np.float64) if index < HORIZON else None


def blocking(client: Client, now_ns: int) -> Array | None:
    """The whole chunk from its beginning, then the next question."""
    chunk = client.source.poll(now_ns)
    if chunk is not None:
        client.memory |= {"chunk": chunk, "since": now_ns, "arrived": True}
    index = (now_ns - client.memory["since"]) // STEP_NS if "chunk" in client.memory else HORIZON
    if index >= HORIZON:
        client.ask(now_ns)
        return None
    return client.memory["chunk"].actions[index].astype(np.float64)


def other(rule: Rule, trace: Trace, ticks: int) -> tuple[Array, NDArray[np.bool_], int]:
    """As `ours`, for another rule; a tick without an action sends no command, and the arm stays."""
    arm, client = Arm(FR3), Client(trace)
    q, target = np.array(FR3.home), arm.forward(np.array(FR3.home))
    commands, arrived, missing = np.empty((ticks, 7)), np.zeros(ticks, bool), 0
    for i in range(ticks):
        client.position = arm.forward(q).position
        action = rule(client, i * TICK_NS)
        arrived[i] = client.memory.pop("arrived", False)
        if action is None:
            missing += 1
        else:
            target = target.moved(action[:3] * TICK_NS / STEP_NS, np.zeros(3))
            q = arm.step_towards(q, target, TICK_NS / 1e9)
        commands[i] = q
    return commands, arrived, missing


def figures(q: Array, arrived: NDArray[np.bool_], missing: int, skip: int = 200) -> list[str]:
    """Largest step at a boundary against the largest inside, and the largest share of each limit, after the start."""
    dt = TICK_NS / 1e9
    dq, ddq, dddq = (np.diff(q, n, axis=0) / dt**n for n in (1, 2, 3))
    step = np.linalg.norm(np.diff(q, axis=0), axis=1)
    near = arrived[1:] | np.roll(arrived[1:], 1)  # the tick in which a chunk came, and the next
    inside, at = step[skip:][~near[skip:]].max(), step[skip:][near[skip:]].max()
    use = [
        np.abs(dq[skip:]) / FR3.velocity_max,
        np.abs(ddq[skip:]) / FR3.acceleration_max,
        np.abs(dddq[skip:]) / FR3.jerk_max,
    ]
    broken = np.zeros(len(dddq) - skip, bool)
    for share in use:
        broken |= (share[-len(broken) :] > 1.0 + 1e-6).any(axis=1)
    return [f"{missing}", f"{at / inside:.2f}", *(f"{share.max():.2f}" for share in use), f"{broken.sum()}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[50.0, 150.0, 300.0])
    options = parser.parse_args()
    ticks = round(options.seconds * 1e9 / TICK_NS)
    rules: dict[str, Rule] = {"lerobot": lerobot, "trajectory": trajectory, "blocking": blocking}
    table = Table(title=f"{ticks} ticks of 10 ms; shares of the FR3's limits, 1 is the limit")
    heads = ("without command", "step at boundary / inside", "velocity", "acceleration", "jerk", "ticks over a limit")
    for column in ("latency [ms]", "rule", *heads):
        table.add_column(column, justify="right" if column != "rule" else "left")
    for latency_ms in options.latency_ms:
        trace = Trace(latency_ms / 1e3)
        table.add_row(f"{latency_ms:g}", "volar", *figures(*ours(trace, ticks)))
        for name, rule in rules.items():
            table.add_row("", name, *figures(*other(rule, trace, ticks)))
    Console().print(table)


if __name__ == "__main__":
    main()
