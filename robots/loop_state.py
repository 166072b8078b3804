"""When the control loop may move the arm: its states, the faults that end a motion, and what leaves which state.

    state     the arm                          left by
    running   follows the policy               pause, stop, any fault
    holding   brakes, then rests; the policy   itself, at the first tick that has an action to follow; pause,
              is still asked                   stop, a latching fault
    paused    brakes, then rests; not asked    resume, stop, a latching fault
    stopped   brakes, then rests; not asked    recover, and only at rest and with no fault present

    fault                 when                                                               leads to   resumes
    no_chunk              no chunk has come yet                                              holding    by itself
    chunk_exhausted       the last chunk is over and no other is awaited                     holding    by itself
    policy_pending        the last chunk is over, the next is awaited                        holding    by itself
    policy_silent         the same, for longer than `policy_deadline_s`                      holding    by itself
    policy_failed         the policy raised in this tick; it is asked again in the next      holding    by itself
    observation_failed    a camera raised in this tick; it is asked again in the next        holding    by itself
    ik_failed             no joint positions for the target pose, or finding them raised     holding    by itself
    stale_joint_state     the joint state is older than `joint_state_age_s`                  stopped    recover
    invalid_joint_state   the joint state holds a NaN or an infinity                         stopped    recover
    tracking_error        the arm is farther than `tracking_rad` from where it was told      stopped    recover
    stale_camera          the newest frame is older than `camera_age_s`                      stopped    recover
    frozen_image          a camera gives identical bytes for `frozen_s` while the arm moves  stopped    recover
    policy_dead           the source says that no chunk will come any more                   stopped    recover
    clock_jump            time went back, or forwards by more than `clock_jump_s`            stopped    recover
    stop_requested        `stop` was called                                                  stopped    recover

What the safety filter turns down (`workspace`, `collision`, `no_trajectory`) changes no state: the arm brakes, and
follows again as soon as an action leads elsewhere. A chunk with a NaN is refused (`chunk_non_finite`): the arm follows
the one it has, then holds. Braking begins in the tick that finds the fault, which is the first one after its deadline,
and is the safety filter's: within every limit. A stopped arm that rests is told so in every tick, until its joint state
is stale or invalid or it was moved: then nothing is sent until `recover`, which goes on from where it is measured.
"""

from collections import deque
from typing import Final, Literal

State = Literal["running", "holding", "paused", "stopped"]
Request = Literal["pause", "resume", "stop", "recover"]
RUNNING: Final = "running"
HOLDING: Final = "holding"
PAUSED: Final = "paused"
STOPPED: Final = "stopped"

# The policy side has nothing to follow; the arm goes on by itself when it has.
NO_CHUNK: Final = "no_chunk"
CHUNK_EXHAUSTED: Final = "chunk_exhausted"
POLICY_PENDING: Final = "policy_pending"
POLICY_SILENT: Final = "policy_silent"
POLICY_FAILED: Final = "policy_failed"
OBSERVATION_FAILED: Final = "observation_failed"
IK_FAILED: Final = "ik_failed"
# What is known of the arm, the cameras or the time is wrong, or nobody will say what to do: a person decides.
STALE_JOINT_STATE: Final = "stale_joint_state"
INVALID_JOINT_STATE: Final = "invalid_joint_state"
TRACKING_ERROR: Final = "tracking_error"
STALE_CAMERA: Final = "stale_camera"
FROZEN_IMAGE: Final = "frozen_image"
POLICY_DEAD: Final = "policy_dead"
CLOCK_JUMP: Final = "clock_jump"
STOP_REQUESTED: Final = "stop_requested"
LATCHING: Final = frozenset(
    {
        *(STALE_JOINT_STATE, INVALID_JOINT_STATE, TRACKING_ERROR, STALE_CAMERA, FROZEN_IMAGE),
        *(POLICY_DEAD, CLOCK_JUMP, STOP_REQUESTED),
    }
)
# The computer came late, or what the arm or a camera says cannot be: none of them is the policy's doing. An arm that is
# not where it was told to be (`tracking_error`) is taken for driven against something, which is.
NOT_THE_POLICYS: Final = frozenset(
    {
        *(STALE_JOINT_STATE, INVALID_JOINT_STATE, STALE_CAMERA, FROZEN_IMAGE),
        *(CLOCK_JUMP, OBSERVATION_FAILED),
    }
)
PAUSE_REQUESTED: Final = "pause_requested"  # why a paused arm rests; no fault

# Why a request was not granted; `TickReport.denied` is one of these, or the fault that is still present.
NOT_PAUSED: Final = "not_paused"
NOT_STOPPED: Final = "not_stopped"
STILL_MOVING: Final = "still_moving"
IS_STOPPED: Final = "is_stopped"


class LoopState:
    """The state machine of the table above. Requests come from any thread and are answered in the next tick."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self.reset()

    def reset(self) -> None:
        """Running, without a fault; requests not yet answered are forgotten."""
        self._requests.clear()
        self.state: State = RUNNING
        self.fault: str | None = None

    @property
    def asks(self) -> bool:
        """True while the policy is asked and its actions are followed: running or holding."""
        return self.state in (RUNNING, HOLDING)

    @property
    def reason(self) -> str | None:
        """Why the arm does not move whatever the policy says, None while it may."""
        return PAUSE_REQUESTED if self.state == PAUSED else self.fault if self.state == STOPPED else None

    def request(self, request: Request) -> None:
        self._requests.append(request)

    def answer(self, fault: str | None, at_rest: bool) -> tuple[bool, str | None]:
        """Once at the beginning of each tick. `fault`: what is wrong now whatever the policy says, if anything.

        Returns whether the arm starts anew (all that was planned before must be forgotten), and why the last
        request that was denied was.
        """
        anew, denied = False, None
        while self._requests:
            why = self._grant(self._requests.popleft(), fault, at_rest)
            anew, denied = anew or why is None, why or denied
        if fault in LATCHING:
            self.latch(fault)
        return anew, denied

    def latch(self, fault: str | None) -> None:
        """Stops for a fault of `LATCHING`; the first one is kept until `recover`."""
        if self.state != STOPPED:
            self.state, self.fault = STOPPED, fault

    def settle(self, fault: str | None) -> None:
        """At the end of a tick in which the policy was asked: what there was to follow, or why not."""
        if fault in LATCHING:
            self.latch(fault)
        elif self.asks:
            self.state, self.fault = (RUNNING, None) if fault is None else (HOLDING, fault)

    def _grant(self, request: Request, fault: str | None, at_rest: bool) -> str | None:
        if request == "stop":
            self.latch(STOP_REQUESTED)
            return None
        if request == "recover":
            if self.state != STOPPED:
                return NOT_STOPPED
            if fault is not None or not at_rest:
                return fault or STILL_MOVING
        elif self.state == STOPPED:
            return IS_STOPPED
        elif request == "resume" and self.state != PAUSED:
            return NOT_PAUSED
        self.state, self.fault = (PAUSED if request == "pause" else RUNNING), None
        return None
