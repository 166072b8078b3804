"""One episode of a policy on the virtual clock, through the loop and the filter that a real arm has."""

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from volar.robots.body import JointCommand
from volar.robots.contract import PolicyContract
from volar.robots.control_loop import ControlLoop
from volar.robots.errors import VolarError
from volar.robots.in_process_source import InProcessSource
from volar.robots.interface import Policy
from volar.robots.kinematics import Arm
from volar.robots.limit_margins import MarginMeter
from volar.sim.conditions import STANDARD, check_condition, told
from volar.sim.episode_record import EpisodeRecord
from volar.sim.premise import broken_premise
from volar.sim.trace import Trace
from volar.sim.world import CONTROL_PERIOD_S, TaskWorld


class NothingRuns(VolarError):
    """What an episode runs on cannot be started, so that no episode could run."""


def episode_seed(seed: int, task: str, index: int) -> int:
    """The environment's seed (32 bits): the same for every policy and condition, so that episodes are paired."""
    return int(np.random.SeedSequence([seed, zlib.crc32(task.encode()), index]).generate_state(1)[0])


def world_for(
    task: str, robot: str, contract: PolicyContract, randomization: str = "none", world_seed: int = 0
) -> TaskWorld:
    """The task's world with the cameras, in name and size, that the policy wants."""
    sizes = {camera.name: (camera.width, camera.height) for camera in contract.cameras}
    return TaskWorld(task, robot, sizes, randomization=randomization, world_seed=world_seed)


def policy_steps(world: TaskWorld, contract: PolicyContract) -> int:
    """The task's time in steps of the policy, whose rate may be another than the robot's."""
    return round(world.task.max_steps * contract.action.rate_hz / world.spec.action.rate_hz)


def periods_of_step(step: int, rate_hz: float) -> int:
    """Control periods of policy step `step`, counted from 0: steps end at whole periods, and none drifts."""
    return round((step + 1) / (rate_hz * CONTROL_PERIOD_S)) - round(step / (rate_hz * CONTROL_PERIOD_S))


class ClosedLoop:
    """A policy in one task's world. `latency_s`: from an observation to its chunk, on the virtual clock;
    `max_steps`: the longest episode, in policy steps, by default the task's. `rate_hz`: of these steps. `trace`: of the
    last episode.

    Raises `ContractError` listing every field in which the policy does not fit the robot.
    """

    def __init__(
        self,
        policy: Policy,
        task: str,
        robot: str = "fr3",
        latency_s: float = 0.0,
        randomization: str = "none",
        max_steps: int | None = None,
        world_seed: int = 0,
    ) -> None:
        self._prepare(policy.contract, task, robot, randomization, max_steps, world_seed)
        self._source = InProcessSource(policy, latency_s)
        self._loop = ControlLoop.for_policy(
            self.world.body, Arm(self.world.spec), policy.contract, self._source, period_s=CONTROL_PERIOD_S
        )

    def _prepare(
        self,
        contract: PolicyContract,
        task: str,
        robot: str,
        randomization: str,
        max_steps: int | None,
        world_seed: int,
    ) -> None:
        """What an episode needs whatever drives the arm."""
        self.world = world_for(task, robot, contract, randomization, world_seed)
        self.max_steps = max_steps or policy_steps(self.world, contract)
        self.trace = Trace()
        self.rate_hz = contract.action.rate_hz
        # Seed -> what is wrong with it, and what was drawn for it; the conditions share scenes.
        self._premises: dict[int, tuple[str, Mapping[str, Any]]] = {}

    def run(
        self,
        seed: int,
        index: int = 0,
        condition: str = STANDARD,
        after_step: Callable[[TaskWorld], None] = lambda world: None,
        draws: Mapping[str, Any] | None = None,
    ) -> EpisodeRecord:
        """One episode, determined by the policy, the seed and the condition alone.

        It ends with success, looked for after each policy step, or after `max_steps`. Under `wrong_instruction` the
        policy is told another order and success is still that of the original goal; under `held_out_instruction` it
        is told the goal in a phrasing that no demonstration has. A seed whose premise does not hold is not run. A
        failure inside the episode (diverged physics, a policy that raises) is recorded, not raised. Raises `Unknown`
        for another condition, `RenderingUnavailable` and `NothingRuns` where no episode could run. With the `draws` of
        an earlier episode, randomization draws nothing.
        """
        check_condition(condition)
        self.trace = Trace()
        episode = RunningEpisode(self.world, self.trace)
        instruction = ""
        try:
            if wrong := self._premise(seed, draws):
                return episode.record(index, seed, condition, "", invalid=wrong)
            instruction = self._start(seed, condition, draws)
            episode.begin()
            after_step(self.world)
            while episode.steps < self.max_steps and not episode.success:
                for _ in range(periods_of_step(episode.steps, self.rate_hz)):
                    self._tick(episode)
                episode.end_step()
                after_step(self.world)
        except Exception as error:  # one broken episode must not take the others with it
            from volar.sim.rendering import RenderingUnavailable

            if isinstance(error, RenderingUnavailable | NothingRuns):  # no episode could run
                raise
            self.trace.fail(error)
        return episode.record(index, seed, condition, instruction)

    def close(self) -> None:
        """Frees the renderer."""
        self.world.close()

    def _premise(self, seed: int, draws: Mapping[str, Any] | None) -> str:
        """What is wrong with the seed's scene, or an empty string. Raises what its simulation raises."""
        if draws is not None:
            return broken_premise(self.world, seed, draws)
        if seed not in self._premises:
            wrong = broken_premise(self.world, seed)
            self._premises[seed] = wrong, self.world.draws
        wrong, self.world.draws = self._premises[seed]
        return wrong

    def _start(self, seed: int, condition: str, draws: Mapping[str, Any] | None) -> str:
        self.world.reset(seed, draws)
        instruction = told(self.world, condition)
        self._loop.set_instruction(instruction)
        self._source.reset(seed)
        self._loop.reset(self.world.body.now_ns)
        return instruction

    def _tick(self, episode: "RunningEpisode") -> None:
        report = self._loop.tick(self.world.body.now_ns)
        if report.error is not None:  # here a policy that raises is a broken episode, not a hold
            raise report.error
        episode.command(report.command, report.reason, report.refused)
        self.world.advance(CONTROL_PERIOD_S)
        self.trace.state(self.world.data)


class RunningEpisode:
    """What is counted while an episode runs."""

    def __init__(self, world: TaskWorld, trace: Trace) -> None:
        self.success, self.steps = False, 0
        self._world, self._trace = world, trace
        self._digest, self._start = hashlib.sha256(), ""
        self._meter = MarginMeter(world.spec, CONTROL_PERIOD_S)
        self._holds: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()

    def begin(self) -> None:
        """The world has been reset: hashes the state, what is true in it, and what was drawn for it."""
        start, data = hashlib.sha256(), self._world.data
        for part in (data.qpos, data.qvel, data.ctrl, data.mocap_pos, data.mocap_quat):
            start.update(part.tobytes())
        start.update(json.dumps([self._world.success(), dict(self._world.draws)], sort_keys=True).encode())
        self._start = start.hexdigest()
        self._digest.update(start.digest())

    def command(self, command: JointCommand, reason: str | None, refused: str | None) -> None:
        for part in (command.q, command.dq, command.ddq, np.array([command.gripper_width_m])):
            self._digest.update(np.asarray(part, np.float64).tobytes())
        self._meter.add(command)
        self._trace.commands.append(command)
        self._holds.update([reason] if reason else [])
        self._refused.update([refused] if refused else [])

    def end_step(self) -> None:
        self.steps += 1
        self.success = self._world.success()

    def record(self, index: int, seed: int, condition: str, instruction: str, invalid: str = "") -> EpisodeRecord:
        self._digest.update(self._world.data.qpos.tobytes())
        self._digest.update(self._world.data.qvel.tobytes())
        broken = bool(self._trace.reason)
        draws: dict[str, Any] = dict(self._world.draws)
        return EpisodeRecord(
            task=self._world.task.name,
            condition=condition,
            index=index,
            seed=seed,
            instruction=instruction,
            success=self.success and not broken,
            steps=self.steps,
            episode_sha256="" if invalid else self._digest.hexdigest(),
            valid=not invalid,
            reason=invalid or self._trace.reason,
            holds=dict(sorted(self._holds.items())),
            refused=dict(sorted(self._refused.items())),
            margins=self._meter.result(),
            draws=draws,
            broken=broken,
            start_sha256=self._start,
        )
