"""Instruction to token ids, from a `tokenizer.json` of a pretrained language model (BPE, unigram).

The one module that imports `tokenizers`, HuggingFace's library in Rust; a policy of word level needs none of it
(`tokenize_words`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.robots.tokenize_words import TokenizerError, WordTokenizer

NO_TOKEN = -1  # fills the rest of a sequence: no id of a vocabulary, since models' own padding may be a word to them


class SubwordTokenizer:
    """`encode(text) -> int64 (T,)`: the model's own ids, then `NO_TOKEN`. T is `length`."""

    def __init__(self, raw: Any, length: int) -> None:
        """Raises `TokenizerError` when the library is missing or does not read `raw`."""
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise TokenizerError(f"the policy's tokenizer needs a library: pip install tokenizers ({error})") from error
        try:
            self._tokenizer: Any = Tokenizer.from_str(json.dumps(raw))
        except Exception as error:  # the library raises nothing narrower
            kind = raw.get("model", {}).get("type")
            raise TokenizerError(f"the tokenizer, of type {kind!r}, cannot be read: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.length = length

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> NDArray[np.int64]:
        """Text -> ids (T,). Raises `TokenizerError` when it is too long."""
        found = self._tokenizer.encode(text).ids
        if len(found) > self.length:
            raise TokenizerError(f"{text!r} has {len(found)} tokens, the policy takes at most {self.length}")
        ids = np.full(self.length, NO_TOKEN, dtype=np.int64)
        ids[: len(found)] = found
        return ids

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """None: what is no word of the vocabulary is spelled with its pieces."""
        return ()


def tokenizer_from_json(raw: Any, length: int) -> WordTokenizer | SubwordTokenizer:
    """From the content of a `tokenizer.json`, whichever of the two. Raises `TokenizerError`."""
    kind = raw.get("model", {}).get("type") if isinstance(raw, dict) else None
    return WordTokenizer.from_json(raw, length) if kind in (None, "WordLevel") else SubwordTokenizer(raw, length)


def load_tokenizer(path: Path, length: int) -> WordTokenizer | SubwordTokenizer:
    """Reads `tokenizer.json`. Raises `TokenizerError` naming the file when it cannot be read."""
    try:
        return tokenizer_from_json(json.loads(path.read_text()), length)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path.name} cannot be read: {type(error).__name__} {error}") from error
