"""Action tokenizers: one file each, and one line here."""

import json
from pathlib import Path

from volar.robots.errors import Unknown, UsageError, VolarError
from volar.vla.action_tokenizers.action_tokenizer import ActionTokenizer
from volar.vla.action_tokenizers.fast import Fast
from volar.vla.action_tokenizers.uniform_bins import UniformBins

TOKENIZERS: dict[str, type[ActionTokenizer]] = {"bins": UniformBins, "fast": Fast}
FILE = "action_tokenizer.json"  # in a policy directory


def tokenizer_class(name: str) -> type[ActionTokenizer]:
    """Raises `Unknown` naming the choices."""
    if name not in TOKENIZERS:
        raise Unknown("tokenizer", name, TOKENIZERS)
    return TOKENIZERS[name]


def action_tokenizer(name: str, vocabulary_size: int) -> UniformBins:
    """The bins, their ids at the vocabulary's end, for a decoder that takes no other: a head over bins, or none at all.

    Raises `Unknown`, and `UsageError` for another tokenizer.
    """
    if tokenizer_class(name) is not UniformBins:
        raise UsageError(
            f"tokenizer={name} is for decoder=autoregressive; others have no tokens, or one token a number, its bin: "
            "give tokenizer=bins, or decoder=autoregressive"
        )
    return UniformBins(vocabulary_size)


def save_tokenizer(tokenizer: ActionTokenizer, directory: Path) -> None:
    """Writes `action_tokenizer.json` into a policy directory."""
    name = next(name for name, kind in TOKENIZERS.items() if type(tokenizer) is kind)
    (directory / FILE).write_text(json.dumps({"type": name, **tokenizer.to_json()}) + "\n")


def load_tokenizer(directory: Path) -> ActionTokenizer:
    """The tokenizer of a policy directory. Raises `VolarError` naming the file that cannot be read."""
    path = directory / FILE
    try:
        raw = json.loads(path.read_text())
        return tokenizer_class(str(raw["type"])).from_json(raw)
    except VolarError:
        raise
    except Exception as error:  # `tokenizers` raises bare `Exception`s
        raise VolarError(f"{path} holds no action tokenizer: {error!r}; use another checkpoint") from error
