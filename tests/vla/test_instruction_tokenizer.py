from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from volar.robots.errors import VolarError
from volar.vla.instruction_tokenizer import InstructionTokenizer

SHIPPED = InstructionTokenizer.load()


def test_case_and_punctuation_do_not_matter() -> None:
    a, b = SHIPPED.encode(["lift the red block", "  Lift the RED block!"])
    assert a.tolist() == b.tolist()


def test_huggingfaces_library_reads_the_same_ids(tmp_path: Path) -> None:
    extended = SHIPPED.with_words(["fetch my zorg, quickly"])
    extended.save(tmp_path / "tokenizer.json")
    theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("Put the blue cube on the plate.", "fetch the zorg", "an unheardof word", "left/right"):
        words = theirs.encode(text).ids
        assert extended.encode([text])[0, 1 : 1 + len(words)].tolist() == words


def test_new_words_take_free_slots_and_no_other_id_moves() -> None:
    extended = SHIPPED.with_words(["bring the zorg", "zorg and blick"])
    assert extended.size == SHIPPED.size
    assert SHIPPED.unknown_words("the zorg") == ("zorg",)
    assert extended.unknown_words("zorg blick") == ()
    assert np.array_equal(SHIPPED.encode(["lift the red block"]), extended.encode(["lift the red block"]))
    assert len({*extended.encode(["zorg blick red"])[0].tolist()}) == 5  # pad, begin, three words


def test_too_long_names_the_length() -> None:
    with pytest.raises(VolarError, match="has 25 words, the policy takes at most 19"):
        SHIPPED.encode(["red " * 25])
