"""One control tick: observe, ask the policy, integrate its action, inverse kinematics, safety, robot.

The same loop drives simulation on a virtual clock (evaluation), simulation on the wall clock and a real
arm; time comes in as an argument. It is the only caller of `Body.send`, and sends nothing but what
`SafetyFilter` made. When it moves the arm and when not: the tables of `loop_state`.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from volar.robots import loop_state as ls
from volar.robots.action_space import ActionSpec
from volar.robots.body import Body, ChunkSource, JointCommand, JointState
from volar.robots.chunk_buffer import ChunkBuffer
from volar.robots.collision import Box
from volar.robots.contract import ContractError, PolicyContract, require
from volar.robots.follower import Follower
from volar.robots.interface import ActionChunk, Observation
from volar.robots.kinematics import Arm, Pose
from volar.robots.loop_state import LoopState, State
from volar.robots.rolling_percentile import RollingPercentile
from volar.robots.safety import SafetyFilter
from volar.robots.watchdogs import MOVED_RAD, LoopLimits, Resting, Watchdogs, moving, require_start

Vector = NDArray[np.float64]

NOT_FOLLOWED: Final = "chunk_while_not_running"  # a chunk that came while the loop was paused or stopped; dropped
MIN_RATE_HZ, MAX_RATE_HZ = 50.0, 500.0  # below, braking distances grow; above, Python does not keep the period
# Of the latest latencies: what the prefix is frozen for. A chunk later than that loses its first actions, as ever.
FROZEN_PERCENT: Final = 95.0


@dataclass(frozen=True)
class TickReport:
    """What one tick did. `reason`: why it braked or held, None when it followed an action (A,): a fault of
    `loop_state` seen in this tick, else what stopped the loop, else one of `safety`'s.

    `target`: the integrated pose, base frame. `observation`: taken in this tick, for recording.
    `refused`: why the chunk that arrived in this tick was not taken. `error`: what was raised while
    observing, asking the policy or following it; raise it where a failure must not pass for a hold.
    `mode`: the state after this tick. `denied`: why a request (pause, resume, stop, recover) answered in this tick was
    not granted.
    `policy_error`: in a tick without an action, the source's latest reason why there was no chunk, where it has one.
    `sent`: False while the arm rests in a stop and is told nothing (`watchdogs.Resting`).
    """

    stamp_ns: int
    state: JointState
    command: JointCommand
    reason: str | None
    action: Vector | None
    target: Pose
    observation: Observation | None = None
    chunk: ActionChunk | None = None
    refused: str | None = None
    error: Exception | None = None
    mode: State = ls.RUNNING
    denied: str | None = None
    policy_error: str | None = None
    sent: bool = True


@dataclass(frozen=True)
class _Exchange:
    """What went to the policy and came from it in one tick, and why the arm must brake, if it must."""

    fault: str | None
    observation: Observation | None = None
    chunk: ActionChunk | None = None
    refused: str | None = None
    error: Exception | None = None


class ControlLoop:
    """Runs one arm from action chunks, `1 / period_s` times a second, 50 to 500 Hz.

    Chunks come from `source`, asked every `execute_steps` actions, or are pushed by the caller
    (`push`). `cameras`: the images an observation carries, None for all the body has. `state_names`: its state, by
    default the robot's. `obstacles`: what the arm must not touch, besides itself.
    Call `reset` first, then `tick` each period; `pause`, `resume`, `stop`, `recover` at any time, from any thread:
    the next tick answers them. `latency_s`: of the latest chunks, from their stamp until they came [s].
    Raises `ValueError` naming a setting that is out of range.
    """

    def __init__(
        self,
        body: Body,
        arm: Arm,
        action: ActionSpec,
        source: ChunkSource | None = None,
        *,
        execute_steps: int = 1,
        cameras: tuple[str, ...] | None = None,
        state_names: tuple[str, ...] | None = None,
        period_s: float = 0.01,
        blend_s: float = 0.1,
        limits: LoopLimits | None = None,
        obstacles: tuple[Box, ...] = (),
    ) -> None:
        if execute_steps < 1:
            raise ValueError(f"execute_steps must be at least 1, is {execute_steps}")
        if not 1 / MAX_RATE_HZ <= period_s <= 1 / MIN_RATE_HZ:
            raise ValueError(f"period_s must be from {1 / MAX_RATE_HZ} (500 Hz) to {1 / MIN_RATE_HZ}, is {period_s}")
        self.body, self.arm, self.action, self.period_s = body, arm, action, period_s
        self.limits = limits or LoopLimits()
        self.instruction = self._asked_for = ""
        self.mode = LoopState()
        self.latency_s = RollingPercentile()
        self._source, self._cameras = source, cameras
        self._state_names = state_names or arm.spec.state_names
        self._interval_ns = round(execute_steps * 1e9 / action.rate_hz)
        self._buffer = ChunkBuffer(action, blend_s)
        self._safety = SafetyFilter(arm, period_s, obstacles=obstacles)
        self._follower = Follower(arm, action, period_s, self.limits)
        self._watch = Watchdogs(body, self.limits, () if source is None else cameras)
        self._resting = Resting()
        self._observed_ns: int | None = None
        self._submitted_ns = self._started_ns = 0
        self._width_m = 0.0

    @staticmethod
    def for_policy(
        body: Body,
        arm: Arm,
        contract: PolicyContract,
        source: ChunkSource,
        *,
        period_s: float = 0.01,
        blend_s: float = 0.1,
        limits: LoopLimits | None = None,
        obstacles: tuple[Box, ...] = (),
    ) -> "ControlLoop":
        """The loop a policy's contract asks for. Raises `ContractError` when it does not fit the body or the period."""
        require(contract, body.spec)
        if contract.action.rate_hz * period_s > 1.0 + 1e-9:
            raise ContractError(f"{contract.action.rate_hz:g} actions a second exceed the loop's {1 / period_s:g}")
        return ControlLoop(
            body,
            arm,
            contract.action,
            source,
            execute_steps=contract.execute_steps,
            cameras=tuple(camera.name for camera in contract.cameras),
            state_names=contract.state_names,
            period_s=period_s,
            blend_s=blend_s,
            limits=limits,
            obstacles=obstacles,
        )

    def reset(self, now_ns: int) -> None:
        """Starts from the measured state, at rest, running; forgets chunks and faults. The next tick observes.

        Raises `watchdogs.CannotStart` when the measured state is not finite or the arm moves.
        """
        state = self.body.joint_state()
        require_start(state, self.arm.spec)
        self._safety.reset(state.q, state.gripper_width_m)
        self.mode.reset()
        self._watch.reset(now_ns)
        self._resting.leave()
        self.latency_s.clear()
        self._start_anew(now_ns)
        self._follower.target = self._safety.pose
        self._width_m = state.gripper_width_m

    def set_instruction(self, text: str) -> None:
        """What to do from now on, in any state; the policy is asked again at the next tick it is free."""
        self.instruction = text

    def pause(self) -> None:
        """Brakes and rests until `resume`; the policy is not asked meanwhile."""
        self.mode.request("pause")

    def resume(self) -> None:
        """Leaves the pause: observes and asks the policy anew."""
        self.mode.request("resume")

    def stop(self) -> None:
        """Brakes and rests until `recover`."""
        self.mode.request("stop")

    def recover(self) -> None:
        """Leaves the stop, from where the arm was told to be; granted at rest and when no fault is present.

        An arm that was moved meanwhile goes on from where it is; by more than `tracking_rad`, it needs `reset`.
        """
        self.mode.request("recover")

    @property
    def at_rest(self) -> bool:
        """True when the last command does not move the arm."""
        return self._safety.at_rest

    def push(self, chunk: ActionChunk, now_ns: int) -> str | None:
        """Hands the loop a chunk directly. Returns None when it was taken, else why not."""
        return self._buffer.push(chunk, now_ns) if self.mode.asks else NOT_FOLLOWED

    def tick(self, now_ns: int) -> TickReport:
        """One control period; sends one command, which brakes when anything fails on the way to it; none while the
        arm rests in a stop and was moved, or nobody knows where it is (`watchdogs.Resting`).

        A camera, an observation, a policy or inverse kinematics that raises is a fault of this tick alone, kept in
        the report; the next tick tries again. Raises, and sends nothing, only what leaves nothing to send: whatever
        `Body.joint_state` raises, since nothing is known of the arm then, and `SafetyError` before `reset`
        or should ruckig find no way to brake from a state it made itself. What stops the arm then is the
        robot's own watchdog. What `Body.send` raises is passed on, too.
        """
        state = self.body.joint_state()
        fault, failed = self._watched(state, now_ns)
        if self.mode.state == ls.STOPPED and self._safety.at_rest:
            self._resting.look(state, fault)
        rests = self._safety.at_rest and not (self._resting.ceased and moving(state, self.arm.spec))
        anew, denied = self.mode.answer(fault, rests)
        if anew:
            self._start_anew(now_ns)
        if self.mode.state != ls.STOPPED:
            if self._resting.ceased:
                self._go_on_from(state)
            self._resting.leave()
        asked = self._exchange(state, fault, now_ns)
        fault, action, q_target = asked.fault, None, None
        if self.mode.asks:
            action = self._buffer.at(now_ns)
            if fault is None and action is None:
                fault = self._why_idle(now_ns)
            if fault is None and action is not None:
                q_target, failed = self._follow(action)
                fault = ls.IK_FAILED if q_target is None else None
            self.mode.settle(fault)
        if not self.mode.asks:  # nor does the gripper go on
            self._width_m = self._safety.gripper_width_m
        filtered = self._safety.step(q_target, self._width_m)
        if q_target is None:
            self._follower.target = self._safety.pose  # start again from where the arm is told to be
        if not self._resting.ceased:
            self.body.send(filtered.command)
        return TickReport(
            now_ns,
            state,
            filtered.command,
            fault or self.mode.reason or filtered.reason,
            action,
            self._follower.target or self._safety.pose,
            asked.observation,
            asked.chunk,
            asked.refused,
            failed or asked.error,
            self.mode.state,
            denied,
            getattr(self._source, "error", None) if action is None else None,
            not self._resting.ceased,
        )

    def _go_on_from(self, state: JointState) -> None:
        """After commands had ceased: from where the arm is, unless it is where it was told to be. The hand stays as it
        was told, so that it does not let go."""
        if np.abs(state.q - self._safety.q).max() > MOVED_RAD:
            self._safety.reset(state.q, self._safety.gripper_width_m)
            self._follower.target = self._safety.pose

    def _start_anew(self, now_ns: int) -> None:
        """Forgets what was planned: no answer to an observation from before moves the arm."""
        self._buffer.clear(now_ns)
        self._observed_ns, self._submitted_ns, self._started_ns = None, now_ns, now_ns

    def _watched(self, state: JointState, now_ns: int) -> tuple[str | None, Exception | None]:
        """The fault that is present whatever the policy says, and what a camera raised when asked for stamps."""
        try:
            fault = self._watch.check(state, self._safety.q, now_ns)
        except Exception as error:  # as in `_exchange`
            return ls.OBSERVATION_FAILED, error
        if fault is None and getattr(self._source, "failure", None) is not None:
            return ls.POLICY_DEAD, None
        return fault, None

    def _exchange(self, state: JointState, fault: str | None, now_ns: int) -> _Exchange:
        """Asks the source for a chunk when one is due, and takes the one that is there."""
        if self._source is None:
            return _Exchange(fault)
        observation, failing = None, ls.POLICY_FAILED
        try:
            if fault is None and self.mode.asks:
                failing = ls.OBSERVATION_FAILED
                fault, observation = self._observe(self._source, state, now_ns)
                failing = ls.POLICY_FAILED
                if observation is not None:
                    self._submit(self._source, observation)
                    self._observed_ns = self._submitted_ns = now_ns
                    self._asked_for = observation.instruction
            chunk = self._source.poll(now_ns)
            refused = None
            if chunk is not None:
                self.latency_s.add((now_ns - chunk.stamp_ns) / 1e9)
                refused = self.push(chunk, now_ns)
        except Exception as error:  # cameras and policies are others' code; the arm has to stop whatever they raise
            return _Exchange(fault or failing, observation, error=error)
        return _Exchange(fault, observation, chunk, refused)

    def _submit(self, source: ChunkSource, observation: Observation) -> None:
        if getattr(source, "takes_prefix", False):
            duration_s = self.latency_s.at(FROZEN_PERCENT) or 0.0
            prefix = self._buffer.freeze(observation.stamp_ns, max(0.0, duration_s))
            source.submit_after(observation, prefix)  # type: ignore[attr-defined]
        else:
            source.submit(observation)

    def _due(self, source: ChunkSource, now_ns: int) -> bool:
        """True when a chunk should be asked for; half a period early rather than a period late."""
        if source.pending:
            return False
        if self._observed_ns is None or self.instruction != self._asked_for:
            return True
        return now_ns + self.period_s * 5e8 >= self._observed_ns + self._interval_ns

    def _observe(self, source: ChunkSource, state: JointState, now_ns: int) -> tuple[str | None, Observation | None]:
        """A fault of the images, or the observation if one is due. A camera that seems frozen is looked at anyway."""
        due = self._due(source, now_ns)
        if not due and not self._watch.suspects(now_ns):
            return None, None
        images = self.body.images()
        if self._cameras is not None:
            images = {name: images[name] for name in self._cameras}
        fault = self._watch.look(images, state.q, now_ns)
        if fault is not None or not due:
            return fault, None
        if (taken_of := getattr(self.body, "taken", None)) is not None:
            state = taken_of()
            if state.stamp_ns < self._started_ns:  # its answer would be refused: wait for newer images
                return None, None
        stamp_ns = now_ns if taken_of is None else state.stamp_ns
        vector = self.arm.state(self._state_names, state.q, state.gripper_width_m)
        return None, Observation(images, vector, self.instruction, stamp_ns)

    def _why_idle(self, now_ns: int) -> str:
        if self._source is not None and self._source.pending:
            late = now_ns - self._submitted_ns > self.limits.policy_deadline_s * 1e9
            return ls.POLICY_SILENT if late else ls.POLICY_PENDING
        return ls.CHUNK_EXHAUSTED if self._buffer.ever_filled else ls.NO_CHUNK

    def _follow(self, action: Vector) -> tuple[Vector | None, Exception | None]:
        """Joint target (J,) for an action (A,); None when inverse kinematics fails, and what it raised, if it did."""
        width_m = self._follower.width_m(action)
        if width_m is not None:
            self._width_m = width_m
        try:
            return self._follower.follow(action, self._safety.pose, self._safety.q), None
        except Exception as error:  # the solver is others' code, too
            return None, error
