"""Words of an instruction to token ids, for backbones made from scratch.

A HuggingFace word-level tokenizer with a shipped vocabulary (`tokenizers/tiny.json`) and free slots: words
that a dataset uses and the vocabulary lacks take a slot each when a policy is first trained, so that a
checkpoint's shape does not depend on its instructions. Action bins are the 256 ids after the words, the last
of the vocabulary, as in RT-2 and OpenVLA.
"""

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError

PAD, UNKNOWN, BEGIN = "<pad>", "<unk>", "<s>"
SLOT = "<slot{}>"
WORDS = 1024  # size of the word vocabulary, free slots included


class InstructionTokenizer:
    """`encode(["lift the red block"]) -> int64 (1, T)`: <s>, words, <pad>. T is `length`."""

    def __init__(self, tokenizer: Any, length: int = 20) -> None:
        self._tokenizer = tokenizer
        self.length = length
        self._pad, self._begin = tokenizer.token_to_id(PAD), tokenizer.token_to_id(BEGIN)

    @staticmethod
    def load(path: Path | None = None, length: int = 20) -> "InstructionTokenizer":
        """From a `tokenizer.json`; the shipped one when `path` is None."""
        from tokenizers import Tokenizer

        text = (files("volar.vla") / "tokenizers" / "tiny.json").read_text() if path is None else path.read_text()
        return InstructionTokenizer(Tokenizer.from_str(text), length)

    @staticmethod
    def from_words(words: Iterable[str], length: int = 20) -> "InstructionTokenizer":
        """A new vocabulary of `words`, padded with free slots to `WORDS` entries."""
        from tokenizers import Regex, Tokenizer
        from tokenizers.models import WordLevel
        from tokenizers.normalizers import Lowercase
        from tokenizers.pre_tokenizers import Split

        entries = [PAD, UNKNOWN, BEGIN, *sorted(set(words))]
        if len(entries) > WORDS:
            raise VolarError(f"{len(entries)} words do not fit a vocabulary of {WORDS}")
        entries += [SLOT.format(i) for i in range(WORDS - len(entries))]
        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(entries)}, unk_token=UNKNOWN))
        tokenizer.normalizer = Lowercase()
        tokenizer.pre_tokenizer = Split(Regex("[^a-z0-9]+"), "removed")
        return InstructionTokenizer(tokenizer, length)

    @property
    def size(self) -> int:
        """Number of word ids; the action bins follow."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, instructions: Sequence[str]) -> NDArray[np.int64]:
        """B strings -> (B, T). Raises `VolarError` naming an instruction that is too long."""
        ids = np.full((len(instructions), self.length), self._pad, dtype=np.int64)
        ids[:, 0] = self._begin
        for row, text in zip(ids, instructions, strict=True):
            words = self._tokenizer.encode(text).ids
            if len(words) >= self.length:
                raise VolarError(f"instruction {text!r} has {len(words)} words, at most {self.length - 1} fit")
            row[1 : 1 + len(words)] = words
        return ids

    def unknown_words(self, text: str) -> list[str]:
        """Words of `text` that the vocabulary lacks."""
        vocabulary = self._tokenizer.get_vocab()
        return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in vocabulary]

    def with_words(self, texts: Iterable[str]) -> "InstructionTokenizer":
        """A tokenizer that also knows every word of `texts`; new words take free slots in sorted order."""
        import json

        from tokenizers import Tokenizer

        new = sorted({word for text in texts for word in self.unknown_words(text)})
        raw = json.loads(self._tokenizer.to_str())
        vocabulary: dict[str, int] = raw["model"]["vocab"]
        free = sorted((word for word in vocabulary if word.startswith("<slot")), key=lambda word: vocabulary[word])
        if len(new) > len(free):
            raise VolarError(f"{len(new)} new words, but the vocabulary has only {len(free)} free slots")
        for word, slot in zip(new, free, strict=False):
            vocabulary[word] = vocabulary.pop(slot)
        return InstructionTokenizer(Tokenizer.from_str(json.dumps(raw)), self.length)

    def save(self, path: Path) -> None:
        self._tokenizer.save(str(path))
