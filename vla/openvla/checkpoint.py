"""A folder with an OpenVLA checkpoint: what its files say, and the network with its weights.

config.json                    model_type "openvla"; norm_stats: what the numbers of each dataset are
dataset_statistics.json        of a fine-tuned checkpoint: stands for norm_stats
preprocessor_config.json       how the image is normalized for each tower
tokenizer.json                 Llama's
model.safetensors, or model-0000i-of-0000n.safetensors with model.safetensors.index.json

No code of the folder is run (`trust_remote_code`), and timm is not needed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.robots.errors import Unknown, VolarError
from volar.vla.action_tokenizers.uniform_bins import BINS
from volar.vla.openvla.vision_tower import HEADS, TowerShape

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig

    from volar.vla.openvla.model import OpenVLAModel

CONFIG, PREPROCESSOR, TOKENIZER = "config.json", "preprocessor_config.json", "tokenizer.json"
STATISTICS, INDEX = "dataset_statistics.json", "model.safetensors.index.json"
TOWERS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
UNUSED = ("norm.", "fc_norm.", "attn_pool.", "head.")  # of a tower, behind the block that is taken
OFT = ("action_head", "proprio_projector", "vision_backbone--", "noisy_action_projector")  # its files begin so
RESIZE = "resize-naive"  # the only image_resize_strategy that is known here
LANGUAGE_MODELS = ("llama2-7b-pure", "llama2-13b-pure")  # those that were asked with OpenVLA's prompt


class OpenVLAError(VolarError):
    """A checkpoint that is no OpenVLA, or is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """`raw`: config.json. `means`, `stds`: (3,) of each tower. `shards`: file -> tensor name -> shape."""

    folder: Path
    raw: Mapping[str, Any]
    means: tuple[tuple[float, ...], tuple[float, ...]]
    stds: tuple[tuple[float, ...], tuple[float, ...]]
    shards: Mapping[Path, Mapping[str, tuple[int, ...]]]

    @staticmethod
    def open(folder: Path) -> "Checkpoint":
        """Reads everything but the weights. Raises `OpenVLAError` naming the file that is missing or does not fit."""
        if (folder / "adapter_config.json").is_file() and not (folder / CONFIG).is_file():
            raise OpenVLAError(f"{folder} holds a LoRA adapter alone; merge it into its base model first")
        raw = _json(folder / CONFIG)
        if raw.get("model_type") != "openvla":
            raise OpenVLAError(f"{folder / CONFIG} is of model_type {raw.get('model_type')!r}, not 'openvla'")
        if of_oft := sorted(path.name for path in folder.iterdir() if path.name.startswith(OFT)):
            raise OpenVLAError(f"{folder} has {of_oft[0]}: an OpenVLA-OFT, whose actions are no tokens; not supported")
        _require_known(folder, raw)
        means, stds = _image_statistics(folder / PREPROCESSOR)
        return Checkpoint(folder, raw, means, stds, {path: _shapes(path) for path in _weight_files(folder)})

    @property
    def vocabulary_size(self) -> int:
        """Where the action tokens end: the language model's, without what its matrix was padded with."""
        return int(self.text.vocab_size) - int(self.raw.get("pad_to_multiple_of", 64))

    @property
    def text(self) -> "LlamaConfig":
        from transformers import LlamaConfig

        given = dict(self.raw["text_config"])
        for key in ("model_type", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path"):
            given.pop(key, None)
        return LlamaConfig(**given)

    @property
    def norm_stats(self) -> Mapping[str, Any]:
        """Dataset -> its statistics; those beside the checkpoint, if it has any, as OpenVLA's own evaluation does."""
        path = self.folder / STATISTICS
        found = _json(path) if path.is_file() else self.raw.get("norm_stats") or {}
        if not found:
            raise OpenVLAError(f"{self.folder} has no norm_stats in {CONFIG} and no {STATISTICS}: actions mean nothing")
        return found

    def statistics(self, key: str | None) -> tuple[str, Mapping[str, Any]]:
        """The name and the statistics of a dataset; None: of the only one. Raises `Unknown` naming those there are."""
        stats = self.norm_stats
        if key is None and len(stats) > 1:
            raise OpenVLAError(
                f"{self.folder} was trained on {len(stats)} datasets; give dataset=KEY: {', '.join(sorted(stats))}"
            )
        key = next(iter(stats)) if key is None else key
        if key not in stats:
            raise Unknown("dataset in norm_stats", key, stats)
        return key, stats[key]

    @property
    def towers(self) -> tuple[TowerShape, TowerShape]:
        """Raises `VolarError` when the tensors are none of timm's vision transformers, or of another image size."""
        shapes = {name: shape for file in self.shards.values() for name, shape in file.items()}
        found = []
        for prefix, name, size in zip(TOWERS, self.raw["timm_model_ids"], self.raw["image_sizes"], strict=True):
            own = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
            tower = TowerShape.of(own, HEADS[name])
            if tower.image_size != size:
                raise OpenVLAError(f"{name} is for images of {tower.image_size} pixels, {CONFIG} says {size}")
            found.append(tower)
        return found[0], found[1]

    def network(self) -> "OpenVLAModel":
        """The network without weights, checked against the tensors' shapes. Raises `OpenVLAError` naming the first."""
        from accelerate import init_empty_weights

        from volar.vla.openvla.model import OpenVLAModel

        with init_empty_weights(include_buffers=False):
            model = OpenVLAModel(self.towers, self.text)
        there = {name: shape for file in self.shards.values() for name, shape in file.items()}
        wanted = {name: tuple(value.shape) for name, value in model.named_parameters()}
        for name, shape in wanted.items():
            if there.get(name) != shape:
                found = there.get(name, "nothing of that name")
                raise OpenVLAError(f"{self.folder}: {name} must be {shape}, found {found}; the checkpoint is not whole")
        for name in sorted(there.keys() - wanted.keys()):
            if not self._unused(name):
                raise OpenVLAError(f"{self.folder}: {name} is no part of OpenVLA; it is a checkpoint of something else")
        return model

    def load(self, device: "torch.device") -> "OpenVLAModel":
        """The network with its weights, each read once, straight to the device, in the type they are stored in."""
        from safetensors import SafetensorError, safe_open

        model = self.network()
        wanted = {name for name, _ in model.named_parameters()}
        for path, names in self.shards.items():
            try:
                with safe_open(str(path), "pt", device=str(device)) as file:
                    model.load_state_dict(
                        {name: file.get_tensor(name) for name in names if name in wanted}, strict=False, assign=True
                    )
            except (OSError, SafetensorError) as error:
                raise OpenVLAError(f"{path} cannot be read, it is cut short or damaged: {error}") from error
        return model.to(device).eval()

    def _unused(self, name: str) -> bool:
        for prefix, tower in zip(TOWERS, self.towers, strict=True):
            if name.startswith((f"{prefix}blocks.{tower.depth - 1}.", *(prefix + end for end in UNUSED))):
                return True
        return False


def _require_known(folder: Path, raw: Mapping[str, Any]) -> None:
    """Raises `OpenVLAError` for what would predict other actions than the checkpoint was trained to."""
    facts: tuple[tuple[str, object, tuple[object, ...]], ...] = (
        ("use_fused_vision_backbone", raw.get("use_fused_vision_backbone"), (True,)),
        ("timm_model_ids", raw.get("timm_model_ids"), (list(HEADS),)),
        ("timm_override_act_layers", raw.get("timm_override_act_layers", [None, None]), ([None, None],)),
        ("llm_backbone_id", raw.get("llm_backbone_id", LANGUAGE_MODELS[0]), LANGUAGE_MODELS),
        ("n_action_bins", raw.get("n_action_bins", BINS), (BINS,)),
        # A letterbox would put bars where the images that a body hands over, which are square, have none. It is the
        # default of OpenVLA's configuration, which transformers leaves away when it writes one.
        ("image_resize_strategy", raw.get("image_resize_strategy", "letterbox"), (RESIZE,)),
    )
    for name, found, known in facts:
        if found not in known:
            choices = " or ".join(map(repr, known))
            raise OpenVLAError(f"{folder / CONFIG} has {name} {found!r}; what is known here is {choices}")
    sizes = raw.get("image_sizes")
    if not isinstance(sizes, list) or len(sizes) != len(TOWERS):
        raise OpenVLAError(f"{folder / CONFIG} has image_sizes {sizes!r}; it must have one for each of two towers")
    if not isinstance(raw.get("text_config"), dict):
        raise OpenVLAError(f"{folder / CONFIG} lacks text_config, the language model's configuration")


def _image_statistics(path: Path) -> tuple[Any, Any]:
    """Means and deviations of both towers. What torchvision was given (`tvf_normalize_params`, which the published
    checkpoints have rounded to bfloat16) counts, as in OpenVLA's own processor, and `means`, `stds` otherwise."""
    raw = _json(path)
    if raw.get("image_resize_strategy", RESIZE) != RESIZE:
        raise OpenVLAError(
            f"{path} has image_resize_strategy {raw['image_resize_strategy']!r}; what is known here is {RESIZE!r}"
        )
    given = raw.get("tvf_normalize_params")
    means = [item["mean"] for item in given] if given else raw.get("means")
    stds = [item["std"] for item in given] if given else raw.get("stds")
    if not means or not stds or [len(v) for v in (*means, *stds)] != [3] * 4:
        raise OpenVLAError(f"{path} has no means and stds of three colours for each of two vision towers")
    return tuple(map(tuple, means)), tuple(map(tuple, stds))


def _weight_files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        files = _json(folder / INDEX).get("weight_map")
        if not isinstance(files, dict):
            raise OpenVLAError(f"{folder / INDEX} has no weight_map: what is in which file; download it again")
        names = sorted(set(files.values()))
    else:
        names = ["model.safetensors"]
    for name in names:
        if not (folder / name).is_file():
            raise OpenVLAError(f"{folder} lacks {name}; download all of the checkpoint's safetensors files")
    return [folder / name for name in names]


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no mapping
    except (OSError, SafetensorError) as error:
        raise OpenVLAError(f"{path} cannot be read, it is cut short or damaged: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise OpenVLAError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise OpenVLAError(f"{path} holds no settings")
    return raw
