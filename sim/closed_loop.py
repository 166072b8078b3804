"""One episode of a policy on the virtual clock, through the loop and the filter that a real arm has."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from volar.robots.body import JointCommand
from volar.robots.contract import PolicyContract
from volar.robots.control_loop import ControlLoop, InProcessSource
from volar.robots.errors import Unknown
from volar.robots.interface import Policy
from volar.robots.kinematics import Arm
from volar.robots.limit_margins import LimitMargins, MarginMeter
from volar.sim.sim_robot import SimRobot
from volar.sim.world import CONTROL_PERIOD_S, TaskWorld

WRONG_INSTRUCTION = "wrong_instruction"
HELD_OUT_INSTRUCTION = "held_out_instruction"
CONDITIONS = ("standard", WRONG_INSTRUCTION, HELD_OUT_INSTRUCTION)


@dataclass(frozen=True)
class EpisodeRecord:
    """What happened in one episode.

    `index`: its number within the task; `steps`: at the policy's rate; `episode_sha256`: over the initial
    state, every command and the final state, so that equal hashes are equal bits. `holds`: control
    periods in which the arm braked or held, by reason; `refused`: chunks not taken, by reason.
    `draws`: what randomization drew, by axis.
    `valid`: False when the episode broke down, for the `reason` given; it then counts as a failure.
    """

    task: str
    condition: str
    index: int
    seed: int
    instruction: str
    success: bool
    steps: int
    episode_sha256: str
    valid: bool
    reason: str
    holds: Mapping[str, int]
    refused: Mapping[str, int]
    margins: LimitMargins
    draws: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "EpisodeRecord":
        return EpisodeRecord(**{**raw, "margins": LimitMargins(**raw["margins"])})


def episode_seed(seed: int, task: str, index: int) -> int:
    """The environment's seed (32 bits): the same for every policy and condition, so that episodes are paired."""
    return int(np.random.SeedSequence([seed, zlib.crc32(task.encode()), index]).generate_state(1)[0])


def world_for(task: str, robot: str, contract: PolicyContract) -> TaskWorld:
    """The task's world with the cameras, in name and size, that the policy wants."""
    world = TaskWorld(task, robot)
    sizes = {camera.name: (camera.width, camera.height) for camera in contract.cameras}
    world.body = SimRobot(world.spec, world.model, world.data, sizes)
    return world


class ClosedLoop:
    """A policy in one task's world. `latency_s`: from an observation to its chunk, on the virtual clock.

    Raises `ContractError` listing every field in which the policy does not fit the robot.
    """

    def __init__(self, policy: Policy, task: str, robot: str = "fr3", latency_s: float = 0.0) -> None:
        self.world = world_for(task, robot, policy.contract)
        self._source = InProcessSource(policy, latency_s)
        self._loop = ControlLoop.for_policy(
            self.world.body, Arm(self.world.spec), policy.contract, self._source, period_s=CONTROL_PERIOD_S
        )
        self._ticks = round(1.0 / (policy.contract.action.rate_hz * CONTROL_PERIOD_S))  # control periods a step

    def run(
        self,
        seed: int,
        index: int = 0,
        condition: str = "standard",
        after_step: Callable[[TaskWorld], None] = lambda world: None,
    ) -> EpisodeRecord:
        """One episode, determined by the policy, the seed and the condition alone.

        It ends with success, looked for after each policy step, or after the task's `max_steps`. Under
        `wrong_instruction` the policy is told another colour and success is still that of the original goal;
        under `held_out_instruction` it is told the goal in a phrasing that no demonstration has. A failure inside
        the episode (diverged physics, a policy that raises) is recorded, not raised. Raises `Unknown` for another
        condition.
        """
        if condition not in CONDITIONS:
            raise Unknown("condition", condition, CONDITIONS)
        meter = MarginMeter(self.world.spec, CONTROL_PERIOD_S)
        holds: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        digest = hashlib.sha256()
        instruction, success, steps, reason = "", False, 0, ""
        try:
            instruction = self._start(seed, condition)
            self._hash_state(digest)
            after_step(self.world)
            while steps < self.world.task.max_steps and not success:
                for _ in range(self._ticks):
                    report = self._loop.tick(self.world.body.now_ns)
                    if report.error is not None:  # here a policy that raises is a broken episode, not a hold
                        raise report.error
                    _hash_command(digest, report.command)
                    meter.add(report.command)
                    holds.update([report.reason] if report.reason else [])
                    refused.update([report.refused] if report.refused else [])
                    self.world.advance(CONTROL_PERIOD_S)
                steps += 1
                success = self.world.success()
                after_step(self.world)
        except Exception as error:  # one broken episode must not take the others with it
            from volar.sim.rendering import RenderingUnavailable

            if isinstance(error, RenderingUnavailable):  # no episode could run
                raise
            success, reason = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
        self._hash_state(digest)
        return EpisodeRecord(
            task=self.world.task.name,
            condition=condition,
            index=index,
            seed=seed,
            instruction=instruction,
            success=success,
            steps=steps,
            episode_sha256=digest.hexdigest(),
            valid=not reason,
            reason=reason,
            holds=dict(sorted(holds.items())),
            refused=dict(sorted(refused.items())),
            margins=meter.result(),
            draws=dict(self.world.draws),
        )

    def close(self) -> None:
        """Frees the renderer."""
        self.world.close()

    def _start(self, seed: int, condition: str) -> str:
        self.world.reset(seed)
        instruction = {
            WRONG_INSTRUCTION: self.world.wrong_instruction,
            HELD_OUT_INSTRUCTION: self.world.rephrased,
        }.get(condition, lambda: self.world.instruction)()
        self._loop.set_instruction(instruction)
        self._source.reset(seed)
        self._loop.reset(self.world.body.now_ns)
        return instruction

    def _hash_state(self, digest: Any) -> None:
        digest.update(self.world.data.qpos.tobytes())
        digest.update(self.world.data.qvel.tobytes())


def _hash_command(digest: Any, command: JointCommand) -> None:
    for part in (command.q, command.dq, command.ddq, np.array([command.gripper_width_m])):
        digest.update(np.asarray(part, np.float64).tobytes())
