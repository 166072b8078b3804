"""A pretrained vision-language model from a folder that `save_pretrained` writes, or from the Hub.

What is taken from it: `config.json`, its weights, `tokenizer.json`, and mean and deviation of its images. A policy
keeps all of it but the weights as they were, so that nothing is looked for again when it is loaded.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volar.robots.errors import Unknown, VolarError
from volar.robots.tokenize_subwords import NO_TOKEN, SubwordTokenizer
from volar.vla.backbone import DTYPES, Backbone, VlmConfig
from volar.vla.families import FAMILIES
from volar.vla.instruction_tokenizer import InstructionTokenizer
from volar.vla.qwen_vision import nearest_size

TEXT_LENGTH = 48  # tokens of an instruction with its template; a sentence of twenty words has about thirty
_FILES = ["*.json", "*.safetensors", "*.jinja"]
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
_MARKER = re.compile(r"<[^<>]+>")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Pretrained:
    """A model ready to be trained on: its weights are in `backbone`."""

    config: VlmConfig
    backbone: Backbone
    tokenizer: InstructionTokenizer


def load_pretrained(
    source: str, image_size: int | None = None, dtype: str = "float32", added_tokens: int = 0, camera_size: int = 224
) -> Pretrained:
    """The model at `source`, a folder or a Hub id. `image_size` [pixels]: None for the vision tower's own, or where it
    takes any (Qwen's) for `camera_size`, rounded to whole tokens. `added_tokens`: rows that its vocabulary is to have
    more.

    Raises `VolarError` naming what is missing or does not fit, and what to do.
    """
    if dtype not in DTYPES:
        raise Unknown("dtype", dtype, DTYPES)
    folder = find_folder(source)
    architecture = read_architecture(folder)
    tokenizer = _read_json(folder, "tokenizer.json", "AutoTokenizer.from_pretrained(..).save_pretrained(..) writes it")
    config, tokenizer = describe(architecture, tokenizer, folder, image_size, dtype, camera_size)
    from transformers import AutoModelForImageTextToText

    try:
        load: Any = AutoModelForImageTextToText.from_pretrained
        model, found = load(str(folder), dtype=DTYPES[dtype], local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise VolarError(f"the weights in {folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    _require_all(found, folder)
    if added_tokens:
        model.resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + added_tokens, mean_resizing=False)
        config = replace(config, architecture=_complete(model.config), words=None)
    return Pretrained(config, Backbone(model, config), InstructionTokenizer(tokenizer, TEXT_LENGTH))


def find_folder(source: str) -> Path:
    """The folder of a backbone; one of the Hub is fetched first, or found in its cache. Raises `VolarError`."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if not _HUB_ID.fullmatch(source):
        raise Unknown("backbone", source, ["tiny", "a folder with config.json", "a Hub id such as ORGANIZATION/MODEL"])
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=_FILES))
    except Exception as error:  # the client raises its own, requests' and httpx's
        raise VolarError(
            f"backbone {source} is no folder and cannot be fetched ({type(error).__name__}); where there is a network: "
            f"hf download {source} --local-dir DIR, then backbone=DIR"
        ) from error


def read_architecture(folder: Path) -> Any:
    """The `transformers` configuration in a folder. Raises `VolarError` unless it is of a family we know."""
    raw = _read_json(folder, "config.json", "backbone= takes tiny, a folder that save_pretrained wrote, or a Hub id")
    kind = raw.get("model_type")
    if kind not in FAMILIES or kind == "tiny":
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

        what = "no image-text-to-text model" if kind not in KNOWN else "a model whose inputs Volar does not know yet"
        have = ", ".join(sorted(FAMILIES))
        raise VolarError(f"{folder} holds {what} (model_type {kind!r}); choices: {have}; more go in vla/families.py")
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(folder), local_files_only=True)


def describe(
    architecture: Any,
    tokenizer: dict[str, Any],
    folder: Path,
    image_size: int | None,
    dtype: str,
    camera_size: int = 224,
) -> tuple[VlmConfig, dict[str, Any]]:
    """What a policy keeps of a model, and the tokenizer of its instructions. Raises `VolarError`."""
    family, vision = FAMILIES[architecture.model_type], architecture.vision_config
    if family.towers and vision.model_type not in family.towers:
        raise Unknown(f"vision tower of a {architecture.model_type}", vision.model_type, family.towers)
    own = getattr(vision, "image_size", None) or nearest_size(vision, camera_size)
    size = image_size or int(own[0] if isinstance(own, list | tuple) else own)
    try:
        family.side(architecture, size)
    except ValueError as error:
        raise VolarError(f"{folder}: {error}; set image_size=") from error
    mean, std = image_statistics(folder)
    head, template = next((p for p in family.prompts if _has(tokenizer, *p)), ("", ""))
    ids = _spell(head, tokenizer)
    if template:
        tokenizer = _inside(tokenizer)
    around = [
        _spell(text, tokenizer) if _has(tokenizer, *_MARKER.findall(text)[:1]) else ()
        for text in (family.image_start, family.image_end)
    ]
    config = VlmConfig(
        name=architecture.model_type,
        architecture=_complete(architecture),
        image_size=size,
        image_mean=mean,
        image_std=std,
        resize="antialiased",
        head=ids,
        image_start=around[0],
        image_end=around[1],
        template=template or "{instruction}",
        dtype=dtype,
        words=count_words(tokenizer),
    )
    return config, tokenizer


def count_words(tokenizer: dict[str, Any]) -> int:
    """Ids of a `tokenizer.json` before the tokens that were added at its end.

    That is `vocab_size` of `transformers`, from which OpenVLA counts, but before words at its end that are added tokens
    at once, as places and segments (<loc0000>, <seg000>) in PaliGemma where its processor has saved them.
    """
    vocabulary = tokenizer["model"]["vocab"]  # {word: id}, or of unigrams [[word, score], ..]
    ids = {word: i for i, (word, _) in enumerate(vocabulary)} if isinstance(vocabulary, list) else vocabulary
    added = {token["content"] for token in tokenizer.get("added_tokens", [])}
    return 1 + max(int(i) for word, i in ids.items() if word not in added)


def image_statistics(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels in [0, 1], of three colours. Raises `VolarError` when no file says them."""
    for name in _PREPROCESSORS:
        if (folder / name).is_file():
            raw = _read_json(folder, name, "")
            raw = raw.get("image_processor", raw)
            if not raw.get("do_normalize", True):
                return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
            if "image_mean" in raw and "image_std" in raw:
                return tuple(map(float, raw["image_mean"])), tuple(map(float, raw["image_std"]))
    raise VolarError(
        f"{folder} does not say how images are normalized: image_mean and image_std in {_PREPROCESSORS[0]}; "
        "AutoImageProcessor.from_pretrained(..).save_pretrained(..) writes it"
    )


def _complete(architecture: Any) -> dict[str, Any]:
    """Every field of a `transformers` configuration, defaults too, as JSON has it."""
    return _without_path(json.loads(architecture.to_json_string(use_diff=False)))


def _without_path(raw: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in raw.items() if key != "_name_or_path"}
    return {key: _without_path(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _has(tokenizer: dict[str, Any], *texts: str) -> bool:
    """Whether the vocabulary has every marker of the texts: else the model was not instructed with them."""
    added = {token["content"] for token in tokenizer.get("added_tokens", [])}
    return {marker for text in texts for marker in _MARKER.findall(text)} <= added


def _spell(text: str, tokenizer: dict[str, Any]) -> tuple[int, ...]:
    """The ids of a text, and nothing added but the space that some tokenizers begin words with. Their start of a
    sequence is read apart: it does not count as what such a space would follow."""
    start = _MARKER.match(text)
    parts = (start.group(), text[start.end() :]) if start else (text,)
    reader = SubwordTokenizer(tokenizer | {"post_processor": None}, 64)
    return tuple(int(i) for part in parts for i in reader.encode(part) if i != NO_TOKEN)


def _inside(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer of what follows in a prompt: it puts before a text neither the start of a sequence nor the space
    that it puts before the first word."""

    def no_space(part: Any) -> Any:
        if isinstance(part, list):
            return [no_space(each) for each in part]
        if not isinstance(part, dict):
            return part
        first = part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first"
        return {name: no_space(value) for name, value in part.items()} | ({"prepend_scheme": "never"} if first else {})

    return tokenizer | {"post_processor": None, "pre_tokenizer": no_space(tokenizer.get("pre_tokenizer"))}


def _require_all(found: dict[str, Any], folder: Path) -> None:
    """Raises `VolarError` where weights are missing, and so random; one that is tied to another is not missing."""
    missing, unused = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if missing:
        more = f"; it has {len(unused)} that the model does not take: {', '.join(unused[:3])}" if unused else ""
        raise VolarError(f"{folder} lacks {len(missing)} weights: {', '.join(missing[:3])}{more}")


def _read_json(folder: Path, name: str, fix: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise VolarError(f"backbone {folder} has no {name}; {fix}")
    try:
        raw: dict[str, Any] = json.loads((folder / name).read_text())
    except ValueError as error:
        raise VolarError(f"{folder / name} cannot be read: {error}") from error
    return raw
