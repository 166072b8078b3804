"""Instruction to token ids, from a `tokenizer.json` of model type WordLevel, without any tokenizer library.

The file is one that HuggingFace `tokenizers` reads and writes (lower-casing, whitespace and punctuation,
WordLevel); a robot computer needs nothing but this module to read it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.errors import VolarError

PAD, UNKNOWN, START = "<pad>", "<unk>", "<s>"
_WORD = re.compile(r"[a-z0-9]+")


class TokenizerError(VolarError):
    """A tokenizer file that cannot be read, or a text that does not fit it."""


@dataclass(frozen=True)
class WordTokenizer:
    """`vocabulary`: word -> id, with `<pad>`, `<unk>`, `<s>`. `length`: T, ids in every sequence."""

    vocabulary: dict[str, int]
    length: int

    def __post_init__(self) -> None:
        missing = [token for token in (PAD, UNKNOWN, START) if token not in self.vocabulary]
        if missing:
            raise TokenizerError(f"the vocabulary lacks {', '.join(missing)}")

    @staticmethod
    def load(path: Path, length: int) -> "WordTokenizer":
        """Reads `tokenizer.json`. Raises `TokenizerError` for another model type or special token."""
        try:
            return WordTokenizer.from_json(json.loads(path.read_text()), length)
        except (OSError, ValueError) as error:
            raise TokenizerError(f"{path.name} cannot be read: {type(error).__name__} {error}") from error

    @staticmethod
    def from_json(raw: Any, length: int) -> "WordTokenizer":
        """From the content of a `tokenizer.json`. Raises `TokenizerError` for another model type."""
        try:
            model = raw["model"]
            if model["type"] != "WordLevel":
                raise TokenizerError(f"the tokenizer is of type {model['type']!r}, only WordLevel is supported")
            vocabulary = {str(word): int(index) for word, index in model["vocab"].items()}
            vocabulary |= {str(token["content"]): int(token["id"]) for token in raw.get("added_tokens", [])}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TokenizerError(f"the tokenizer cannot be read: {type(error).__name__} {error}") from error
        return WordTokenizer(vocabulary, length)

    def encode(self, text: str) -> NDArray[np.int64]:
        """Text -> ids (T,): `<s>`, the words, then `<pad>`. Raises `TokenizerError` when it is too long."""
        words = _WORD.findall(text.lower())
        if len(words) + 1 > self.length:
            raise TokenizerError(f"{text!r} has {len(words)} words, the policy takes at most {self.length - 1}")
        unknown = self.vocabulary[UNKNOWN]
        ids = np.full(self.length, self.vocabulary[PAD], dtype=np.int64)
        ids[: len(words) + 1] = [self.vocabulary[START], *(self.vocabulary.get(word, unknown) for word in words)]
        return ids

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """The words of `text` that the policy has never seen, in order, each once."""
        return tuple(dict.fromkeys(word for word in _WORD.findall(text.lower()) if word not in self.vocabulary))
