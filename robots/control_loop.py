"""One control tick: observe, ask the policy, integrate its action, inverse kinematics, safety, robot.

The same loop drives simulation on a virtual clock (evaluation), simulation on the wall clock and a real
arm; time comes in as an argument. It is the only caller of `Body.send`, and sends nothing but what
`SafetyFilter` made.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from volar.robots.action_space import ActionSpec
from volar.robots.body import Body, ChunkSource, JointCommand, JointState
from volar.robots.chunk_buffer import ChunkBuffer
from volar.robots.contract import PolicyContract, require
from volar.robots.interface import ActionChunk, Observation, Policy
from volar.robots.kinematics import Arm, Pose, rotation_vector
from volar.robots.safety import SafetyFilter

Vector = NDArray[np.float64]

# Why the arm brakes or holds; `TickReport.reason` is one of these or one of `safety`'s.
NO_CHUNK: Final = "no_chunk"
CHUNK_EXHAUSTED: Final = "chunk_exhausted"
POLICY_PENDING: Final = "policy_pending"
POLICY_SILENT: Final = "policy_silent"
STALE_JOINT_STATE: Final = "stale_joint_state"
INVALID_JOINT_STATE: Final = "invalid_joint_state"
IK_FAILED: Final = "ik_failed"
OBSERVATION_FAILED: Final = "observation_failed"
POLICY_FAILED: Final = "policy_failed"


@dataclass(frozen=True)
class LoopLimits:
    """When the loop stops following its policy.

    `joint_state_age_s`: oldest joint state acted on. `policy_deadline_s`: a policy that has not answered
    for that long is called silent. `lead_m`, `lead_rad`: how far the integrated pose may run ahead of
    the commanded one (anti-windup; the safety filter lags by v^2 / 2a, about 0.03 m at full speed).
    `inset_m`: how far inside the workspace box that pose stays, so that the curvature of a joint-space
    path does not cross the box at its border.
    """

    joint_state_age_s: float = 0.1
    policy_deadline_s: float = 0.5
    lead_m: float = 0.05
    lead_rad: float = 0.3
    inset_m: float = 0.002


@dataclass(frozen=True)
class TickReport:
    """What one tick did. `reason`: why it braked or held, None when it followed an action (A,).

    `target`: the integrated pose, base frame. `observation`: taken in this tick, for recording.
    `refused`: why the chunk that arrived in this tick was not taken. `error`: what was raised while
    observing or asking the policy; raise it where a failure must not pass for a hold.
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


@dataclass(frozen=True)
class _Exchange:
    """What went to the policy and came from it in one tick, and why the arm must brake, if it must."""

    fault: str | None
    observation: Observation | None = None
    chunk: ActionChunk | None = None
    refused: str | None = None
    error: Exception | None = None


class ControlLoop:
    """Runs one arm from action chunks, `1 / period_s` times a second.

    Chunks come from `source`, asked every `execute_steps` actions, or are pushed by the caller
    (`push`). `cameras`: the images an observation carries, None for all the body has.
    Call `reset` first, then `tick` each period.
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
        period_s: float = 0.01,
        blend_s: float = 0.1,
        limits: LoopLimits | None = None,
    ) -> None:
        if execute_steps < 1:
            raise ValueError(f"execute_steps must be at least 1, is {execute_steps}")
        self.body, self.arm, self.action, self.period_s = body, arm, action, period_s
        self.limits = limits or LoopLimits()
        self.instruction = ""
        self._source, self._cameras = source, cameras
        self._interval_ns = round(execute_steps * 1e9 / action.rate_hz)
        self._buffer = ChunkBuffer(action, blend_s)
        self._safety = SafetyFilter(arm, period_s)
        inset_m = self.limits.inset_m
        self._box = np.array(arm.spec.workspace_low) + inset_m, np.array(arm.spec.workspace_high) - inset_m
        self._observed_ns: int | None = None
        self._submitted_ns = 0
        self._width_m = 0.0
        self._target: Pose | None = None

    @staticmethod
    def for_policy(
        body: Body,
        arm: Arm,
        contract: PolicyContract,
        source: ChunkSource,
        *,
        period_s: float = 0.01,
        blend_s: float = 0.1,
    ) -> "ControlLoop":
        """The loop a policy's contract asks for. Raises `ContractError` when it does not fit the body."""
        require(contract, body.spec)
        return ControlLoop(
            body,
            arm,
            contract.action,
            source,
            execute_steps=contract.execute_steps,
            cameras=tuple(camera.name for camera in contract.cameras),
            period_s=period_s,
            blend_s=blend_s,
        )

    def reset(self, now_ns: int) -> None:
        """Starts from the measured state, at rest; forgets chunks. The next tick observes.

        Raises `SafetyError` when the measured state is not finite.
        """
        state = self.body.joint_state()
        self._safety.reset(state.q, state.gripper_width_m)
        self._buffer.clear()
        self._target = self._safety.pose
        self._width_m = state.gripper_width_m
        self._observed_ns, self._submitted_ns = None, now_ns

    def set_instruction(self, text: str) -> None:
        """What to do from now on; the policy is asked again at the next tick it is free."""
        if text != self.instruction:
            self.instruction, self._observed_ns = text, None

    def push(self, chunk: ActionChunk, now_ns: int) -> str | None:
        """Hands the loop a chunk directly. Returns None when it was taken, else why not."""
        return self._buffer.push(chunk, now_ns)

    def tick(self, now_ns: int) -> TickReport:
        """One control period; sends exactly one command, which brakes when anything fails on the way to it.

        A camera, an observation or a policy that raises is a fault of this tick alone, kept in the report;
        the next tick tries again. Raises, and sends nothing, only what leaves nothing to send: whatever
        `Body.joint_state` raises, since nothing is known of the arm then, and `SafetyError` before `reset`
        or should ruckig find no trajectory from a state it made itself. What stops the arm then is the
        robot's own watchdog. What `Body.send` raises is passed on, too.
        """
        state = self.body.joint_state()
        asked = self._exchange(state, now_ns)
        fault, action = asked.fault, self._buffer.at(now_ns)
        if fault is None and action is None:
            fault = self._why_idle(now_ns)
        q_target = None
        if fault is None and action is not None:
            q_target = self._follow(action)
            fault = IK_FAILED if q_target is None else None
        filtered = self._safety.step(q_target, self._width_m)
        if q_target is None:
            self._target = self._safety.pose  # start again from where the arm is told to be
        self.body.send(filtered.command)
        return TickReport(
            now_ns,
            state,
            filtered.command,
            fault or filtered.reason,
            action,
            self._anchored,
            asked.observation,
            asked.chunk,
            asked.refused,
            asked.error,
        )

    @property
    def _anchored(self) -> Pose:
        return self._safety.pose if self._target is None else self._target

    def _fault(self, state: JointState, now_ns: int) -> str | None:
        if now_ns - state.stamp_ns > self.limits.joint_state_age_s * 1e9:
            return STALE_JOINT_STATE
        if not (np.isfinite(state.q).all() and np.isfinite(state.gripper_width_m)):
            return INVALID_JOINT_STATE
        return None

    def _exchange(self, state: JointState, now_ns: int) -> _Exchange:
        """Asks the source for a chunk when one is due, and takes the one that is there."""
        fault = self._fault(state, now_ns)
        if self._source is None:
            return _Exchange(fault)
        observation, failing = None, POLICY_FAILED
        try:
            if fault is None and self._due(self._source, now_ns):
                failing = OBSERVATION_FAILED
                observation = self._observe(state, now_ns)
                failing = POLICY_FAILED
                self._source.submit(observation)
                self._observed_ns = self._submitted_ns = now_ns
            chunk = self._source.poll(now_ns)
            refused = None if chunk is None else self._buffer.push(chunk, now_ns)
        except Exception as error:  # cameras and policies are others' code; the arm has to stop whatever they raise
            return _Exchange(fault or failing, observation, error=error)
        return _Exchange(fault, observation, chunk, refused)

    def _due(self, source: ChunkSource, now_ns: int) -> bool:
        """True when a chunk should be asked for; half a period early rather than a period late."""
        if source.pending:
            return False
        return self._observed_ns is None or now_ns + self.period_s * 5e8 >= self._observed_ns + self._interval_ns

    def _observe(self, state: JointState, now_ns: int) -> Observation:
        images = self.body.images()
        if self._cameras is not None:
            images = {name: images[name] for name in self._cameras}
        proprio = self.arm.proprio(state.q, state.gripper_width_m)
        return Observation(images, proprio, self.instruction, now_ns)

    def _why_idle(self, now_ns: int) -> str:
        if self._source is not None and self._source.pending:
            late = now_ns - self._submitted_ns > self.limits.policy_deadline_s * 1e9
            return POLICY_SILENT if late else POLICY_PENDING
        return CHUNK_EXHAUSTED if self._buffer.ever_filled else NO_CHUNK

    def _follow(self, action: Vector) -> Vector | None:
        """Joint target (J,) for an action (A,); None when inverse kinematics fails."""
        if self.action.gripper != "none":
            opening = action[-1] if self.action.gripper == "open_is_one" else 1.0 - action[-1]
            self._width_m = float(opening) * self.arm.spec.gripper_width_max
        if self.action.kind == "joint_position":
            q_target: Vector = action[: self.arm.spec.joints]
            return q_target
        self._target = self._limited(self._displaced(action))
        return self._inverse(self._target)

    def _displaced(self, action: Vector) -> Pose:
        """The target after one period at the action's velocity."""
        share = self.period_s * self.action.rate_hz
        translation = action[:3] * share
        rotation = action[3:6] * share if self.action.rotation == "rotation_vector" else np.zeros(3)
        if self.action.frame == "tool":
            translation, rotation = self._anchored.rotation @ translation, self._anchored.rotation @ rotation
        return self._anchored.moved(translation, rotation)

    def _limited(self, target: Pose) -> Pose:
        """The target inside the workspace box and near the commanded pose, so that it cannot wind up."""
        here = self._safety.pose
        position = np.clip(target.position, *self._box)
        lead = position - here.position
        distance_m = float(np.linalg.norm(lead))
        if distance_m > self.limits.lead_m:
            position = here.position + lead * (self.limits.lead_m / distance_m)
        turn = rotation_vector(target.rotation @ here.rotation.T)
        angle = float(np.linalg.norm(turn))
        if angle > self.limits.lead_rad:
            return Pose(position, here.moved(np.zeros(3), turn * (self.limits.lead_rad / angle)).rotation)
        return Pose(position, target.rotation)

    def _inverse(self, target: Pose) -> Vector | None:
        import mink

        try:
            q_target = self.arm.step_towards(self._safety.q, target, self.period_s)
        except mink.NoSolutionFound:
            return None
        return q_target if np.isfinite(q_target).all() else None


class InProcessSource:
    """A `ChunkSource` that runs a policy in this process, for a virtual clock.

    The policy predicts at `submit`; its chunk is handed out once `latency_s` [s] of the loop's time has
    passed since the observation's stamp, so that evaluation feels the latency that deployment has.
    """

    def __init__(self, policy: Policy, latency_s: float = 0.0) -> None:
        if latency_s < 0:
            raise ValueError(f"latency_s must not be negative, is {latency_s}")
        self.policy = policy
        self._latency_ns = round(latency_s * 1e9)
        self._chunk: ActionChunk | None = None

    def reset(self, seed: int) -> None:
        """Drops the pending chunk and resets the policy."""
        self._chunk = None
        self.policy.reset(seed)

    def submit(self, observation: Observation) -> None:
        self._chunk = self.policy.predict(observation)

    def poll(self, now_ns: int) -> ActionChunk | None:
        if self._chunk is None or now_ns < self._chunk.stamp_ns + self._latency_ns:
            return None
        chunk, self._chunk = self._chunk, None
        return chunk

    @property
    def pending(self) -> bool:
        return self._chunk is not None
