"""Words of an instruction to token ids: those of a backbone made from scratch, or of a pretrained language model.

From scratch: a HuggingFace `tokenizer.json` of word level with a shipped vocabulary (`tokenizers/tiny.json`) and free
slots: words that a dataset uses and the vocabulary lacks take a slot each when a policy is first trained, so that a
checkpoint's shape does not depend on its instructions. Action bins are the 256 ids after the words, the last of the
vocabulary, as in RT-2 and OpenVLA. Pretrained: the `tokenizer.json` beside the model's weights. Encoding is `robots`'
own, which the robot computer uses too.
"""

import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError
from volar.robots.tokenize_subwords import SubwordTokenizer, tokenizer_from_json

WORDS = 1024  # size of the word vocabulary, free slots included
_SLOT = "<slot"


class InstructionTokenizer:
    """`encode(["lift the red block"]) -> int64 (1, T)`: <s>, words, <pad>. T is `length`.

    A pretrained model's pieces of words take the place of words, and `NO_TOKEN` that of <pad>.
    """

    def __init__(self, tokenizer_json: dict[str, Any], length: int = 20) -> None:
        self._json = tokenizer_json
        self._words = tokenizer_from_json(tokenizer_json, length)
        self.length = length

    @staticmethod
    def load(path: Path | None = None, length: int = 20) -> "InstructionTokenizer":
        """From a `tokenizer.json`; the shipped one when `path` is None. Raises `VolarError` if it is broken."""
        try:
            text = (files("volar.vla") / "tokenizers" / "tiny.json").read_text() if path is None else path.read_text()
            return InstructionTokenizer(json.loads(text), length)
        except (OSError, ValueError) as error:
            raise VolarError(f"the tokenizer {path} cannot be read: {error}") from error

    @property
    def size(self) -> int:
        """Number of word ids; the action bins follow."""
        return self._words.size if isinstance(self._words, SubwordTokenizer) else len(self._words.vocabulary)

    @property
    def markers(self) -> dict[int, str]:
        """What was added to a pretrained model's words, by id."""
        return {int(token["id"]): str(token["content"]) for token in self._json.get("added_tokens", [])}

    def encode(self, instructions: Sequence[str]) -> NDArray[np.int64]:
        """B strings -> (B, T). Raises `VolarError` naming an instruction that is too long."""
        return np.stack([self._words.encode(text) for text in instructions])

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """Words of `text` that the vocabulary lacks."""
        return self._words.unknown_words(text)

    def with_words(self, texts: Iterable[str]) -> "InstructionTokenizer":
        """A tokenizer that also knows every word of `texts`; new words take free slots in sorted order.

        One of a pretrained model knows them all. Raises `VolarError` when the slots do not suffice.
        """
        if isinstance(self._words, SubwordTokenizer):
            return self
        new = sorted({word for text in texts for word in self.unknown_words(text)})
        raw = json.loads(json.dumps(self._json))
        vocabulary: dict[str, int] = raw["model"]["vocab"]
        free = sorted((word for word in vocabulary if word.startswith(_SLOT)), key=lambda word: vocabulary[word])
        if len(new) > len(free):
            raise VolarError(f"{len(new)} new words, but the vocabulary has only {len(free)} free slots")
        for word, slot in zip(new, free, strict=False):
            vocabulary[word] = vocabulary.pop(slot)
        return InstructionTokenizer(raw, self.length)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self._json, ensure_ascii=False, indent=1) + "\n")
