"""`VolarPolicy`: the network and its contract as a LeRobot policy.

Everything runs through the `InferenceGraph` that our own policies run, so both act the same: images in [0, 1] become
the uint8 they came from, and state and actions are in physical units on LeRobot's side.
"""

import json
from collections import deque
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import parser
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from volar.datasets.episode import POINTS_SHAPE
from volar.datasets.lerobot_format import load_contract
from volar.datasets.normalizer import Normalizer
from volar.robots.contract import ContractError, PolicyContract, require
from volar.robots.errors import VolarError
from volar.robots.spec import load_robot
from volar.vla.backbone import BackboneConfig
from volar.vla.checkpoint_policy import load_parts
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.lerobot_plugin.configuration_volar import VolarConfig, find_directory
from volar.vla.losses import imitation_loss
from volar.vla.modeling_volar import VolarModel, pixels_from_images
from volar.vla.network_facts import policy_contract
from volar.vla.processor_volar import InferenceGraph, save_policy
from volar.vla.training_run import require_same_inputs

IMAGES, BODY = "observation.images.", "observation.body"
OF_THE_HUB = ("revision", "cache_dir", "token", "local_files_only", "force_download")  # of LeRobot's from_pretrained
Parts = tuple[VolarModel, PolicyContract, InstructionTokenizer]


class VolarPolicy(PreTrainedPolicy):  # type: ignore[misc]
    """Keys: `observation.images.CAMERA` (B, 3, H, W) in [0, 1], `observation.state` (B, S), `task` B strings.

    `observation.body` (B, bytes), which our environment gives: `ROBOT RATE`, compared with the contract. Raises
    `VolarError` on what is missing or of another size, `ContractError` for a robot that the policy does not fit.
    `parts`: of a trained policy. Without them a new network under the contract of `dataset_meta`'s dataset.
    """

    config_class = VolarConfig
    name = "volar"

    def __init__(
        self, config: VolarConfig, dataset_meta: Any = None, parts: Parts | None = None, **_: Any
    ) -> None:  # LeRobot also hands over statistics: the contract has them
        super().__init__(config)
        model, self.contract, self.tokenizer = parts or _new_parts(config, dataset_meta)
        for name in ("chunk_length", "execute_steps"):
            found, wanted = getattr(self.contract, name), getattr(config, name)
            if wanted not in (None, found):
                raise VolarError(f"{name} is {wanted}, but the contract of the policy says {found}")
            setattr(config, name, found)
        _require_architecture(config, model)
        config.input_features, config.output_features = _features(self.contract)
        self.graph = InferenceGraph(model, self.contract)
        action = Normalizer.of_contract(self.contract, "action")
        self.register_buffer("action_offset", torch.tensor(action.offset, dtype=torch.float32), persistent=False)
        self.register_buffer("action_scale", torch.tensor(action.scale, dtype=torch.float32), persistent=False)
        self.register_buffer("action_limit", torch.tensor(action.clip_high, dtype=torch.float32), persistent=False)
        self._fits: set[str] = set()
        self.new_words: set[str] = set()  # of the dataset, that the policy did not know
        self.reset()
        self.to(config.device)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: VolarConfig | None = None,
        dataset_meta: Any = None,
        **kwargs: Any,
    ) -> "VolarPolicy":
        """A directory that volar-train or LeRobot wrote, or a Hub repository of one. In evaluation mode.

        Raises `ContractError` listing every field in which the dataset of `dataset_meta`, to train on, does not fit,
        and `VolarError` where it has more new words than the vocabulary has room for.
        """
        directory = find_directory(
            pretrained_name_or_path, **{name: kwargs[name] for name in OF_THE_HUB if name in kwargs}
        )
        config = config or VolarConfig.from_pretrained(directory)
        model, contract, tokenizer = load_parts(directory)
        new: set[str] = set()
        if dataset_meta is not None:
            root = Path(dataset_meta.root)
            # Cameras are compared with each batch: LeRobot may rename them, and the policy takes its own of more.
            require_same_inputs(load_contract(root), contract, root, "the policy", but=("cameras",))
            if not _resumes():
                tasks = list(map(str, dataset_meta.tasks.index))
                new = {word for task in tasks for word in tokenizer.unknown_words(task)}
                tokenizer = _knowing(tokenizer, contract, tasks)
        if config.use_peft:
            _require_no_new(new)
        policy = cls(config, parts=(model, contract, tokenizer))
        policy.new_words = new
        policy.eval()
        return policy

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """`state_dict`: this policy's weights where processes share them (FSDP); LeRobot has put them together."""
        model = self.graph.model if state_dict is None else self._model_of(state_dict)
        save_policy(save_directory, model, self.contract, self.tokenizer)
        self.config._save_pretrained(save_directory)

    def _model_of(self, state_dict: dict[str, Tensor]) -> VolarModel:
        """A network on the CPU with these weights of this policy; its own, of which this process has a part, stay."""
        own, prefix = self.graph.model, "graph.model."
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # a resumed run draws on from here
            model = VolarModel(own.config, self.contract, tokenizer=own.tokenizer)
        weights = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
        model.load_state_dict(weights)
        return model

    def wrap_with_peft(self, *given: Any, **named: Any) -> Any:
        """Raises `VolarError` where a policy has low-rank updates: PEFT would begin them anew, without a word."""
        if any(".lora_" in name for name, _ in self.named_parameters()):
            raise VolarError(
                "the policy has low-rank updates, which --peft would replace by new ones: lerobot-train without --peft "
                "goes on with them, and volar-train init=POLICY language=full (vision=, connector=) makes them weights"
            )
        _require_no_new(self.new_words)
        return super().wrap_with_peft(*given, **named)

    def get_optim_params(self) -> Any:
        return [p for p in self.parameters() if p.requires_grad]

    def reset(self) -> None:
        self._queue: deque[Tensor] = deque()

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss of imitation and its parts. There are no labels of points in LeRobot's batches."""
        model, actions = self.graph.model, batch["action"]  # (B, H, A)
        images, state, ids = self._inputs(batch)
        padded = batch.get("action_is_pad", torch.zeros(actions.shape[:2], dtype=torch.bool, device=actions.device))
        normal = ((actions - self.action_offset) * self.action_scale).clamp(-self.action_limit, self.action_limit)
        mask = ~padded
        if model.config.decoder == "parallel":
            outputs: Any = self.graph.outputs(images, state, ids)
        else:
            pixels = pixels_from_images(images, model.config.backbone)
            seed = int(torch.randint(2**31, ()))
            outputs = model(pixels, ids, self.graph.state_scaler(state), actions=normal, mask=mask, seed=seed)
        nowhere = torch.full((len(actions), *POINTS_SHAPE), torch.nan, device=actions.device)
        std = torch.tensor(model.config.point_std, device=actions.device)
        losses = imitation_loss(outputs, normal, mask, nowhere, std)
        return losses.total, losses.named()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], noise: Tensor | None = None, **_: Any) -> Tensor:
        """(B, H, A) in physical units."""
        self.eval()
        actions: Tensor
        actions, _points = self.graph(*self._inputs(batch), noise)
        return actions

    def select_action(self, batch: dict[str, Any], **kwargs: Any) -> Tensor:
        """(B, A): the next of the chunk's first `execute_steps`."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, **kwargs)
            self._queue.extend(chunk[:, : self.contract.execute_steps].unbind(1))
        return self._queue.popleft()

    def _inputs(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        features = self.config.input_features
        missing = [key for key in (*features, "task") if key not in batch]
        if missing:
            raise VolarError(f"the batch lacks {missing}; it has {sorted(batch)}: rename them with --rename_map")
        for key, feature in features.items():
            if (found := tuple(batch[key].shape[1:])) != feature.shape:
                raise VolarError(f"{key} is {found} in the batch; the policy's contract wants {feature.shape}")
        if BODY in batch:
            self._require_body(batch[BODY])
        images = {
            key.removeprefix(IMAGES): (batch[key] * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
            for key, feature in features.items()
            if feature.type is FeatureType.VISUAL
        }
        tasks = [batch["task"]] if isinstance(batch["task"], str) else batch["task"]
        texts = [self.contract.instruction_template.format(instruction=task) for task in tasks]
        state = batch["observation.state"]
        return images, state, torch.from_numpy(self.tokenizer.encode(texts)).to(state.device)

    def _require_body(self, codes: Tensor) -> None:
        text = bytes(codes.flatten(0, -2)[0].to(torch.uint8).tolist()).rstrip(b"\0").decode()
        if text in self._fits:
            return
        robot, rate_hz = text.split(" ")
        require(self.contract, load_robot(robot))
        if float(rate_hz) != self.contract.action.rate_hz:
            own = f"{self.contract.action.rate_hz:g}"
            raise ContractError(f"the policy acts {own} times a second, the environment {rate_hz}: --env.fps={own}")
        self._fits.add(text)


def _resumes() -> bool:
    """Whether this is `lerobot-train --resume=true`, which goes on exactly; LeRobot tells its policies nowhere else."""
    return (parser.parse_arg("resume") or "").lower() == "true"


def _require_architecture(config: VolarConfig, model: VolarModel) -> None:
    """Raises `VolarError` naming what LeRobot's flags want of a trained network that it is not."""
    wanted, found = config.architecture(), model.config
    pairs = {f.name: (getattr(found, f.name), getattr(wanted, f.name)) for f in fields(found)}
    differing = [f"{name}={has}, not {asked}" for name, (has, asked) in pairs.items() if has != asked]
    if differing:
        raise VolarError(
            f"the trained policy has {'; '.join(differing)}; volar-train init=POLICY makes another network of it"
        )


def _require_no_new(words: set[str]) -> None:
    """Raises `VolarError` for words that a policy is to learn: LeRobot saves an adapter without the vocabulary."""
    if words:
        raise VolarError(f"the policy is to learn the words {sorted(words)}, which --peft does not save: go without it")


def _features(contract: PolicyContract) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    """What goes in and comes out, as LeRobot says it: images (3, H, W) in the contract's order, and numbers."""
    images = {IMAGES + c.name: PolicyFeature(FeatureType.VISUAL, (3, c.height, c.width)) for c in contract.cameras}
    state = PolicyFeature(FeatureType.STATE, (len(contract.state_names),))
    action = PolicyFeature(FeatureType.ACTION, (contract.action.size,))
    return images | {"observation.state": state}, {"action": action}


def _new_parts(config: VolarConfig, dataset_meta: Any) -> Parts:
    if dataset_meta is None:
        raise VolarError("a new volar policy needs a dataset with a contract; or name a trained one: --policy.path")
    contract = load_contract(Path(dataset_meta.root))
    chosen = {name: getattr(config, name) for name in ("chunk_length", "execute_steps")}
    contract = replace(contract, **{name: value for name, value in chosen.items() if value is not None})
    if "architecture" in config.backbone or config.backbone.get("name", BackboneConfig.name) != BackboneConfig.name:
        raise VolarError(
            f"a new policy here has the backbone {BackboneConfig.name!r}. A pretrained one comes from its folder with "
            "weights, prompts and tokenizer: volar-train dataset=DATA backbone=DIR output=RUN, then "
            "lerobot-train --policy.path=RUN/checkpoints/last/pretrained_model"
        )
    config.backbone = {"resize": "antialiased"} | config.backbone
    architecture = config.architecture()
    if architecture.tokenizer != "bins":
        raise VolarError(f"tokenizer {architecture.tokenizer!r} is trained by volar-train; start from its directory")
    if len(architecture.camera_tokens) != len(contract.cameras):
        sides = [4 if i else 8 for i in range(len(contract.cameras))]
        raise VolarError(
            f"camera_tokens={list(architecture.camera_tokens)}, but the dataset's cameras are "
            f"{[camera.name for camera in contract.cameras]}: give LeRobot a number for each, as in "
            f"--policy.camera_tokens={json.dumps(sides)}"
        )
    contract = policy_contract(contract, architecture)
    tokenizer = InstructionTokenizer.load(length=architecture.text_length)
    tokenizer = _knowing(tokenizer, contract, list(map(str, dataset_meta.tasks.index)))
    return VolarModel(architecture, contract), contract, tokenizer


def _knowing(tokenizer: InstructionTokenizer, contract: PolicyContract, tasks: list[str]) -> InstructionTokenizer:
    """A tokenizer that also knows the words of `tasks`. Raises `VolarError` where there is no room for all, and at once
    for a task that is too long."""
    tokenizer = tokenizer.with_words(tasks)
    tokenizer.encode([contract.instruction_template.format(instruction=task) for task in tasks])
    return tokenizer
