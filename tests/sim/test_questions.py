"""Answers are true of the scenes they are about; the questions are on disk as training reads them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from volar.datasets.lerobot_format import load_contract
from volar.datasets.lerobot_layout import DatasetError
from volar.datasets.questions import Questions
from volar.robots.errors import UsageError, VolarError
from volar.sim.collect import CollectConfig, collect
from volar.sim.colors import COLORS
from volar.sim.grounding import PLATE, Scenes, render_scenes
from volar.sim.questions import ANSWERS, KINDS, NAMES, NUMBERS, Question, ask


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return render_scenes(np.random.default_rng(0), 80, image_size=16)


@pytest.fixture(scope="module")
def asked(scenes: Scenes) -> list[tuple[int, Question]]:
    rng = np.random.default_rng(1)
    return [(i, ask(scenes, i, rng)) for i in range(len(scenes)) for _ in range(12)]


def named(text: str) -> list[int]:
    """Rows of the scene's objects that a text names, in its order."""
    return [NAMES.index(word) for word in text.split() if word in NAMES]


def test_answers_come_from_a_closed_list(asked: list[tuple[int, Question]]) -> None:
    assert {question.kind for _, question in asked} == set(KINDS)
    assert {question.answer for _, question in asked} == set(ANSWERS)
    sides = Counter(question.answer for _, question in asked if question.kind == "side")
    assert 0.4 < sides["left"] / sides.total() < 0.6  # guessing does not pay


def test_answers_are_true(scenes: Scenes, asked: list[tuple[int, Question]]) -> None:
    checked = Counter[str]()
    for i, question in asked:
        rows = [np.flatnonzero((scenes.objects[i] == point).all(1)) for point in question.points]
        if question.kind in ("side", "count"):
            assert [int(row[0]) for row in rows if len(row)] == named(question.text)  # it points at what it names
        else:
            assert NAMES[int(rows[0][0])] == question.answer  # or at the answer
        objects, y = scenes.objects[i, :, :3], scenes.objects[i, :, 1]
        if question.kind == "side":
            what, than = named(question.text)
            assert question.answer == ("left" if y[what] > y[than] else "right")
        elif question.kind == "count":
            (than,) = named(question.text)
            beyond = y[:PLATE] > y[than] if " left " in question.text else y[:PLATE] < y[than]
            assert question.answer == NUMBERS[int(beyond.sum())]
        elif question.kind == "nearest":
            (to,) = named(question.text)
            order = np.argsort(np.linalg.norm(objects - objects[to], axis=1))
            assert question.answer == NAMES[order[1]]  # the first is itself
        elif question.text.endswith("in the gripper"):
            assert question.answer == COLORS[scenes.held[i]]
        elif "leftmost" in question.text:
            assert question.answer == COLORS[y[:PLATE].argmax()]
        elif "farthest from the robot" in question.text:
            assert question.answer == COLORS[objects[:PLATE, 0].argmax()]
        else:
            continue
        checked[question.kind] += 1
    assert min(checked[kind] for kind in KINDS) > 30


def test_collected_questions_follow_from_their_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        collect(CollectConfig(tmp_path / name, kind="questions", scenes=40, image_size=16, workers=1))
    a, b = Questions.open(tmp_path / "a"), Questions.open(tmp_path / "b")
    assert (a.answers, a.kinds, a.frames.instructions) == (b.answers, b.kinds, b.frames.instructions)
    np.testing.assert_array_equal(a.frames.images["front"], b.frames.images["front"])
    assert len(a.frames) == 40
    assert set(a.answers) <= set(ANSWERS)
    assert set(a.kinds) == set(KINDS)
    assert load_contract(tmp_path / "a").robot == "fr3"
    with pytest.raises(VolarError, match="kind: questions, now scenes"):  # the folder is not one of scenes
        collect(CollectConfig(tmp_path / "a", kind="scenes", scenes=40, image_size=16, workers=1, resume=True))
    again = {"kind": "questions", "scenes": 40, "image_size": 16, "workers": 1, "resume": True}
    with pytest.raises(VolarError, match="randomization: none, now visual"):
        collect(CollectConfig(tmp_path / "a", randomization="visual", **again))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="kind=questions asks about blocks"):
        collect(CollectConfig(tmp_path / "c", kind="questions", tasks=("reach",)))
    collect(CollectConfig(tmp_path / "a", kind="scenes", scenes=5, image_size=16, workers=1, overwrite=True))
    with pytest.raises(DatasetError, match="kind=questions makes them"):
        Questions.open(tmp_path / "a")
