"""Questions about generated scenes, each with an answer of one word out of a closed list.

What a vision-language model is asked in its own training, about the pictures a robot sees: colours, counts, sides and
distances. Training on them beside the actions is RT-2's co-training (Zitkovich et al. 2023). Every question has one
clear answer: what is compared differs by `CLEAR_M`. What it is about is pointed at, as in grounding. Left and right are
the robot's own, as in its orders.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volar.sim.colors import COLORS
from volar.sim.grounding import CLEAR_M, PLATE, Scenes, clear_first, extremes, point_at

NUMBERS = ("zero", "one", "two", "three", "four")
THINGS = (*(f"{color} block" for color in COLORS), "plate")  # in the order of `Scenes.objects`
NAMES = (*COLORS, "plate")  # the same as answers
ANSWERS = (*NAMES, *NUMBERS, "left", "right")
Objects = NDArray[np.float32]  # (5, 5), as in `Scenes.objects`
Asked = tuple[str, str, tuple[int, ...]]  # text, answer, and rows of the objects it is about


@dataclass(frozen=True)
class Question:
    """`kind`: of what is asked, a key of `KINDS`; `answer`: one of `ANSWERS`. `points` (3, 5): the one or two things it
    is about, as in `volar.datasets.episode`; to look there is half of the answer."""

    text: str
    answer: str
    kind: str
    points: NDArray[np.float32]


def ask(scenes: Scenes, index: int, rng: np.random.Generator) -> Question:
    """A question about a scene, of a random kind among those that have a clear answer there."""
    objects, held = scenes.objects[index], int(scenes.held[index])
    for kind in rng.permutation(list(KINDS)).tolist():
        found = KINDS[kind](objects, held, rng)
        if found is not None:
            text, answer, about = found
            return Question(text, answer, kind, point_at(*objects[list(about)]))
    # So close a heap that nothing is clear: the widest pair is always more than a block apart.
    left, right = int(objects[:, 1].argmax()), int(objects[:, 1].argmin())
    text = f"is the {THINGS[left]} left or right of the {THINGS[right]}"
    return Question(text, "left", "side", point_at(*objects[[left, right]]))


def _color(objects: Objects, held: int, rng: np.random.Generator) -> Asked | None:
    """ "what color is the leftmost block"; one time in three, where there is one, the block in the gripper."""
    if held >= 0 and rng.random() < 1 / 3:
        return "what color is the block in the gripper", COLORS[held], (held,)
    asked = extremes(objects)
    words, key = asked[rng.integers(len(asked))]
    first = clear_first(key)
    return None if first is None else (f"what color is the {words.format(noun='block')}", COLORS[first], (first,))


def _count(objects: Objects, held: int, rng: np.random.Generator) -> Asked | None:
    """ "how many blocks are left of the plate": none of them may be nearly in line with it."""
    than = int(rng.integers(len(THINGS)))
    offset = np.delete(objects[:PLATE, 1], than if than < PLATE else []) - objects[than, 1]  # (3 or 4,), + is left
    if (np.abs(offset) < CLEAR_M / 2).any():
        return None
    side, sign = (("left", 1.0), ("right", -1.0))[rng.integers(2)]
    return f"how many blocks are {side} of the {THINGS[than]}", NUMBERS[int((sign * offset > 0).sum())], (than,)


def _side(objects: Objects, held: int, rng: np.random.Generator) -> Asked | None:
    """ "is the red block left or right of the plate"."""
    what, than = rng.permutation(len(THINGS))[:2].tolist()
    offset = float(objects[what, 1] - objects[than, 1])
    if abs(offset) < CLEAR_M:
        return None
    return f"is the {THINGS[what]} left or right of the {THINGS[than]}", "left" if offset > 0 else "right", (what, than)


def _nearest(objects: Objects, held: int, rng: np.random.Generator) -> Asked | None:
    """ "which object is nearest to the green block", of the other blocks and the plate."""
    to = int(rng.integers(PLATE))
    distances = np.linalg.norm(objects[:, :3] - objects[to, :3], axis=1)  # (5,)
    distances[to] = np.inf
    first = clear_first(distances)
    return None if first is None else (f"which object is nearest to the {THINGS[to]}", NAMES[first], (first, to))


KINDS: dict[str, Callable[[Objects, int, np.random.Generator], Asked | None]] = {
    "color": _color,
    "count": _count,
    "side": _side,
    "nearest": _nearest,
}
