"""A LeRobot policy (ACT, Diffusion, SmolVLA, pi0, ...) as a `Policy`: the one module that runs LeRobot's policies.

The network and both processor pipelines are LeRobot's own, as `lerobot-rollout` runs them; around them only names,
units and stamps change (`lerobot_contract`). Chunks come from `predict_action_chunk`; what LeRobot does with chunks
afterwards (its action queue, ACT's temporal ensembling) is the control loop's work here.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.contract import PolicyContract
from volar.robots.errors import VolarError
from volar.robots.exported_policy import check_observation
from volar.robots.interface import ActionChunk, Observation
from volar.robots.lerobot_contract import STATE, LeRobotContract, PolicyFacts, derive

SAME_STEP = 1.5  # observations further apart than this many steps are no history


class LeRobotPolicyError(VolarError):
    """LeRobot could not load or run the policy; carries its reason."""


class LeRobotPolicy:
    """`Policy` from a LeRobot policy directory with its `volar_facts.json`.

    A policy that looks at several observations gets those it was asked about one step apart; after a longer gap, as at
    the start, the newest stands for all, which is LeRobot's rule. `threads`: of torch. What it draws follows from the
    seed of `reset` alone. Raises `LeRobotPolicyError`, and as `lerobot_contract.derive`.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self._derived: LeRobotContract = derive(folder, PolicyFacts.load(folder))
        self._contract = self._derived.contract
        try:
            self._policy, self._before, self._after, self._device = _load(folder, threads)
        except ImportError as error:
            raise LeRobotPolicyError(f"{folder} needs what is not installed here: {error}") from error
        except Exception as error:  # whatever LeRobot, torch or a processor raises
            raise LeRobotPolicyError(f"{folder} does not load: {_short(error)}") from error
        self._gpus = [self._device] if self._device.type == "cuda" else []
        self.reset(0)
        self._try()

    @property
    def contract(self) -> PolicyContract:
        return self._contract

    def reset(self, seed: int) -> None:
        """Forgets earlier observations; what the policy draws from now on follows from `seed`."""
        import torch

        self._policy.reset()
        self._before.reset()
        self._after.reset()
        self._last_ns: int | None = None
        # A policy on a GPU draws from the GPU's generator, its processors may from the CPU's.
        self._random = [torch.Generator(device).manual_seed(seed).get_state() for device in ("cpu", *self._gpus)]

    def predict(self, observation: Observation) -> ActionChunk:
        """Raises `ContractError` when the observation does not fit, `LeRobotPolicyError` when LeRobot fails."""
        check_observation(self._contract, observation)
        dt_s = 1.0 / self._contract.action.rate_hz
        gap_ns = 0 if self._last_ns is None else observation.stamp_ns - self._last_ns
        if self._derived.observation_steps > 1 and not 0 <= gap_ns <= SAME_STEP * dt_s * 1e9:
            self._policy.reset()
        self._last_ns = observation.stamp_ns
        try:
            native = self._run(observation)
        except Exception as error:  # as above
            raise LeRobotPolicyError(f"the policy failed: {_short(error)}") from error
        wanted = self._contract.chunk_length, self._contract.action.size
        if native.shape != wanted:
            raise LeRobotPolicyError(f"the policy gives actions of shape {native.shape}, its config says {wanted}")
        return ActionChunk(self._derived.actions(native), observation.stamp_ns, dt_s)

    def _run(self, observation: Observation) -> NDArray[np.float32]:
        """Actions (H, A) in the policy's units."""
        import torch
        from lerobot.policies.utils import prepare_observation_for_inference

        raw: dict[str, Any] = {STATE: self._derived.policy_state(observation.state)}
        raw |= {key: observation.images[name].copy() for key, name in self._derived.images.items()}
        text = self._contract.instruction_template.format(instruction=observation.instruction)
        with torch.inference_mode(), torch.random.fork_rng(devices=self._gpus):
            torch.set_rng_state(self._random[0])
            for gpu, state in zip(self._gpus, self._random[1:], strict=True):
                torch.cuda.set_rng_state(state, gpu)
            batch = prepare_observation_for_inference(raw, self._device, text, self._contract.robot)
            chunk = self._chunk(self._before(batch))  # (1, H, A)
            # One action at a time: LeRobot's postprocessors are written for (B, A).
            actions = torch.stack([self._after(chunk[:, i]) for i in range(chunk.shape[1])], dim=1)
            self._random = [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self._gpus)]
        return np.asarray(actions[0].float().cpu().numpy())

    def _chunk(self, batch: dict[str, Any]) -> Any:
        """Normalized actions (1, H, A) for one preprocessed observation."""
        import torch
        from lerobot.policies.utils import populate_queues

        batch = {key: value for key, value in batch.items() if key != "action"}  # the pipeline adds it, empty
        if not self._derived.chunked:
            return self._policy.select_action(batch)[:, None]
        queues = getattr(self._policy, "_queues", None)
        if queues:  # what each `select_action` does first; without it they have no observations to look at
            if "observation.images" in queues:
                keys = self._policy.config.image_features
                batch["observation.images"] = torch.stack([batch[key] for key in keys], dim=-4)
            populate_queues(queues, batch, exclude_keys=["action"])
        return self._policy.predict_action_chunk(batch)

    def _try(self) -> None:
        """One prediction, so that what does not work is known before the arm moves."""
        images = {c.name: np.zeros((c.height, c.width, 3), np.uint8) for c in self._contract.cameras}
        self.predict(Observation(images, np.zeros(len(self._contract.state_names), np.float32), "", 0))
        self.reset(0)


def _load(folder: Path, threads: int | None) -> tuple[Any, Any, Any, Any]:
    """Policy, preprocessor, postprocessor and torch device."""
    import torch
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    if threads is not None:
        torch.set_num_threads(threads)
    config = PreTrainedConfig.from_pretrained(folder)
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    policy.eval()
    device = {"device_processor": {"device": str(config.device)}}  # the one there is, not the one it was trained on
    before, after = make_pre_post_processors(
        config, pretrained_path=str(folder), preprocessor_overrides=device, postprocessor_overrides=device
    )
    return policy, before, after, torch.device(str(config.device))


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]
