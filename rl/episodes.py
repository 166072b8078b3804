"""One episode of a policy that tries things out, through the loop and the filter that a real arm has.

As in `volar.sim.closed_loop`, on the same virtual clock with the same latency; here every decision is kept.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from volar.datasets.episode import POINTS_SHAPE
from volar.rl.exploration import Noise, tokens_at
from volar.rl.rewards import Told, make_reward, privileged_state, told_goal
from volar.rl.token_policy import PRIVILEGED, Batch, TokenPolicy, pooled
from volar.robots.contract import ContractError, PolicyContract
from volar.robots.control_loop import ControlLoop
from volar.robots.in_process_source import InProcessSource
from volar.robots.interface import ActionChunk, Observation
from volar.robots.kinematics import Arm
from volar.sim.closed_loop import periods_of_step, policy_steps, world_for
from volar.sim.rendering import RenderingUnavailable
from volar.sim.sim_robot import SimulationDiverged
from volar.sim.tasks.layout import NoLayout
from volar.sim.world import CONTROL_PERIOD_S, TaskWorld
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.processor_volar import InferenceGraph

Array = NDArray[Any]


@dataclass(frozen=True)
class Job:
    """One episode to run. `noise_seed`: of what is tried out, None for the deployed policy's own choice; `group`: jobs
    of one group begin in the same state; `held_out`: judged by the truth, whatever the reward; `width`: of what is
    tried out, 1 is the setting's."""

    task: str
    seed: int
    noise_seed: int | None = None
    group: int = 0
    held_out: bool = False
    width: float = 1.0


@dataclass(frozen=True)
class Trajectory:
    """N decisions of one episode. `inputs`: name -> (N, ...), an observation of `TokenPolicy`; `tokens` int16
    (N, E, A); `rewards` (N,) of the steps that each decision lasted, discounted to its beginning; `steps` (N,) their
    number; `last` (P,) or (D,): what the critic sees at the end (zeros for one that sees the pooled queries, where
    nothing follows). `terminated`: it ended by itself, and not by the clock: with success, or what a `Judge` took for
    it. `success`: what was asked for was true after some step. `points` (N, 3, 5): labels of pointing. `valid`: False
    for an episode that could not be run, without decisions, and `error` says why; `broken`: it had begun, which counts
    against the policy."""

    job: Job
    inputs: Mapping[str, Array]
    tokens: Array
    rewards: Array
    steps: Array
    last: Array
    points: Array
    success: bool
    terminated: bool
    valid: bool = True
    error: str = ""
    broken: bool = False

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Setting:
    """What every episode of a run shares. `gamma`: discount of one step; `images`: keep them, for a trunk that trains;
    `pointing`: keep labels of pointing; `classifier`: the folder of one, for reward `classifier`; `critic`: what it
    sees, the simulator's `state` or the `pooled` queries, and so whether the state is kept."""

    tasks: tuple[str, ...]
    robot: str = "fr3"
    randomization: str = "none"
    latency_s: float = 0.02
    reward: str = "sparse"
    gamma: float = 0.99
    world_seed: int = 0
    images: bool = False
    pointing: bool = False
    classifier: str = ""
    critic: str = "state"


class Judge(Protocol):
    """Looks on in place of the truth. `begin` once an episode, then `after_step` after each policy step, in order."""

    def begin(self, world: TaskWorld, instruction: str) -> None: ...

    def after_step(self, world: TaskWorld, success: bool) -> bool:
        """Whether the episode ends here; `success`: whether what was asked for is true now."""
        ...


class ExploringPolicy:
    """`TokenPolicy` as the control loop's `Policy`; remembers what it saw and chose since `reset`."""

    def __init__(self, policy: TokenPolicy, contract: PolicyContract, tokenizer: InstructionTokenizer) -> None:
        self.policy, self.contract, self._tokenizer = policy, contract, tokenizer
        self._table = InferenceGraph(policy.vla, contract).table  # (A, 256), physical
        self._noise: Noise | None = None
        self.inputs: list[dict[str, Array]] = []
        self.tokens: list[Array] = []
        self.keeps_images = False

    def reset(self, seed: int) -> None:
        """Forgets; `explore` says whether the next episode tries things out."""
        self.inputs, self.tokens = [], []

    def explore(self, noise_seed: int | None, width: float) -> None:
        rho, size = self.policy.exploration.correlation, self.contract.action.size
        self._noise = None if noise_seed is None else Noise(size, rho, np.random.default_rng(noise_seed))
        self.policy.widen(width)

    def _batch(self, observation: Observation) -> Batch:
        """As the network takes it: one row, raw."""
        text = self.contract.instruction_template.format(instruction=observation.instruction)
        raw: dict[str, Array] = {c.name: observation.images[c.name] for c in self.contract.cameras}
        raw |= {"state": observation.state, "input_ids": self._tokenizer.encode([text])[0]}
        return {k: torch.from_numpy(v.copy())[None] for k, v in raw.items()}

    @torch.inference_mode()
    def pooled(self, observation: Observation) -> Array:
        """The mean of the queries (D,), which a critic may see in place of the simulator's state."""
        return pooled(self.policy.seen(self._batch(observation))[0])[0].numpy()

    @torch.inference_mode()
    def predict(self, observation: Observation) -> ActionChunk:
        obs = self._batch(observation)
        if self.keeps_images and self.policy.sees_alike:
            obs = self.policy.sight(obs)
        queries, points, state = self.policy.seen(obs)
        logits = self.policy.vla.action_head(queries, points, state)[0]  # (H, A, 256)
        if self._noise is None:
            tokens = logits.argmax(-1)  # (H, A)
        else:
            tokens = tokens_at(self.policy.explored(logits).exp(), self._noise.next())
        seen = {"queries": queries[0].numpy(), "scaled_points": points[0].numpy(), "state": observation.state}
        self.inputs.append({k: v[0].numpy() for k, v in obs.items()} if self.keeps_images else seen)
        self.tokens.append(tokens[: self.contract.execute_steps].numpy().astype(np.int16))
        actions = self._table.gather(1, tokens.T).T  # (H, A)
        return ActionChunk(actions.numpy(), observation.stamp_ns, 1.0 / self.contract.action.rate_hz)


class EpisodeRunner:
    """Runs jobs one after the other. The world of every task that came is kept until `close`; each takes 10 MiB of this
    process's memory, 15 under `full` (FR3, two cameras of 96 pixels, rendered in software).

    An episode is determined by the weights, the setting and the job alone. `judge`: ends episodes, all but those held
    out; None: success does. Raises `ContractError` listing every field in which the policy does not fit the robot.
    """

    def __init__(
        self,
        setting: Setting,
        policy: TokenPolicy,
        contract: PolicyContract,
        tokenizer: InstructionTokenizer,
        judge: Judge | None = None,
    ) -> None:
        self.setting, self._judge = setting, judge
        self.policy = ExploringPolicy(policy, contract, tokenizer)
        self.policy.keeps_images = setting.images
        self._source = InProcessSource(self.policy, setting.latency_s)
        self._worlds: dict[str, tuple[TaskWorld, ControlLoop]] = {}

    def run(self, job: Job) -> Trajectory:
        """One episode; one that fails (no layout, diverged physics, no way for the arm) comes back as not valid."""
        self._world(job.task)
        try:
            return self._run(job)
        except (ContractError, RenderingUnavailable, MemoryError):  # not this episode's
            raise
        except NoLayout as error:
            return failed(job, str(error))
        except SimulationDiverged as error:
            return failed(job, str(error), broken=True)
        except Exception as error:
            self._worlds.pop(job.task)[0].close()  # in whatever state that left it
            return failed(job, f"{type(error).__name__}: {error}", broken=True)

    def close(self) -> None:
        """Frees the renderers."""
        for world, _ in self._worlds.values():
            world.close()
        self._worlds.clear()

    def _run(self, job: Job) -> Trajectory:
        world, loop = self._world(job.task)
        world.reset(job.seed)
        told = Told(world.task, told_goal(world.task, world.instruction, world.goal, world.state))
        reward = make_reward(self.setting.reward, told, self.setting.gamma)
        reward.begin(world.state)
        loop.set_instruction(world.instruction)
        self._source.reset(job.seed)
        self.policy.explore(job.noise_seed, job.width)
        loop.reset(world.body.now_ns)
        judge = None if job.held_out else self._judge
        if judge is not None:
            judge.begin(world, world.instruction)
        steps, limit, success, ended = 0, policy_steps(world, self.policy.contract), False, False
        seen: list[Array] = []
        points: list[Array] = []
        decided_at: list[int] = []
        earned: list[float] = []
        while steps < limit and not ended:
            before = privileged_state(told, world.state, 1.0 - steps / limit, self.setting.tasks)
            label = world.points() if self.setting.pointing else np.zeros(POINTS_SHAPE, np.float32)
            for _ in range(periods_of_step(steps, self.policy.contract.action.rate_hz)):
                report = loop.tick(world.body.now_ns)
                if report.error is not None:
                    raise report.error
                world.advance(CONTROL_PERIOD_S)
            if len(self.policy.tokens) > len(decided_at):  # decisions fall on the first tick of a step
                decided_at.append(steps)
                seen.append(before)
                points.append(label)
            steps += 1
            state = world.state
            now = told.success(state)
            success = success or now
            ended = now if judge is None else judge.after_step(world, now)
            earned.append(reward.after_step(state, ended))
        if self.setting.critic == "pooled":
            last = self._pooled(world, loop, nothing_follows=ended or job.held_out)
        else:
            last = privileged_state(told, world.state, 1.0 - steps / limit, self.setting.tasks)
        rewards, durations = per_decision(earned, decided_at, self.setting.gamma)
        inputs = {key: np.stack([item[key] for item in self.policy.inputs]) for key in self.policy.inputs[0]}
        if self.setting.critic == "state":
            inputs[PRIVILEGED] = np.stack(seen)
        tokens = np.stack(self.policy.tokens)
        return Trajectory(job, inputs, tokens, rewards, durations, last, np.stack(points), success, ended)

    def _pooled(self, world: TaskWorld, loop: ControlLoop, nothing_follows: bool) -> Array:
        """(D,) What the next observation would be to the critic; zeros, and no look, where nothing follows."""
        if nothing_follows:
            return np.zeros(self.policy.policy.vla.backbone.width, np.float32)
        now = world.body.joint_state()
        state = loop.arm.state(self.policy.contract.state_names, now.q, now.gripper_width_m)
        return self.policy.pooled(Observation(world.body.images(), state, world.instruction, world.body.now_ns))

    def world(self, task: str) -> TaskWorld:
        """Where episodes of a task happen; the next one resets it."""
        return self._world(task)[0]

    def _world(self, task: str) -> tuple[TaskWorld, ControlLoop]:
        if task not in self._worlds:
            setting = self.setting
            world = world_for(task, setting.robot, self.policy.contract, setting.randomization, setting.world_seed)
            arm = Arm(world.spec)
            loop = ControlLoop.for_policy(
                world.body, arm, self.policy.contract, self._source, period_s=CONTROL_PERIOD_S
            )
            self._worlds[task] = world, loop
        return self._worlds[task]


def failed(job: Job, error: str, broken: bool = False) -> Trajectory:
    """An episode that could not be run, or not to its end."""
    empty = np.zeros(0, np.float32)
    return Trajectory(job, {}, empty, empty, empty, empty, empty, False, True, False, error, broken)


def per_decision(earned: Sequence[float], decided_at: Sequence[int], gamma: float) -> tuple[Array, Array]:
    """Rewards of steps (T,) -> of decisions (N,), each discounted to its decision, and how many steps each lasted.

    What is earned before the first decision (it is 0 there) is the first one's.
    """
    bounds = [*decided_at, len(earned)]
    bounds[0] = 0
    parts = [np.array(earned[a:b]) for a, b in itertools.pairwise(bounds)]
    rewards = np.array([float(part @ gamma ** np.arange(len(part))) for part in parts], np.float32)
    return rewards, np.array([len(part) for part in parts], np.int32)
