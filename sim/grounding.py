"""Vision-language data from generated scenes: find what the sentence names (`volar-train stage=grounding`).

The simulator labels every scene for nothing, so a small network learns words, colours and places from tens
of thousands of pictures before it sees an action. Nothing is simulated in time: bodies are placed, drawn.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from volar.datasets.episode import POINTS_SHAPE
from volar.sim.colors import COLORS
from volar.sim.random_layouts import LayoutSampler
from volar.sim.scene import SceneState
from volar.sim.tasks import load_suite
from volar.sim.tasks.layout import NoLayout
from volar.sim.tasks.task import NOWHERE, SIDES, Goal
from volar.sim.world import TaskWorld, View

PLATE = len(COLORS)  # index of the plate in `Scenes.objects`
CLEAR_M = 0.03  # by which things must differ for a question about them to have an answer
_ASKED = load_suite("starter")  # tasks whose orders are about blocks and plate alone, which the scenes have


@dataclass(frozen=True)
class Scenes:
    """N labelled scenes. `images`: camera -> uint8 (N, H, W, 3). `state`: float32 (N, S).
    `objects`: float32 (N, 5, 5), rows the blocks in the order of `COLORS` and the plate, columns as in
    `volar.datasets.episode.POINT_FIELDS`; `hand`: float32 (N, 5), the end effector likewise. `held`: (N,) index of the
    block in the gripper, -1 for none. `views`: of each scene, how places in it are labelled."""

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    objects: NDArray[np.float32]
    hand: NDArray[np.float32]
    held: NDArray[np.int64]
    views: tuple[View, ...]

    def __len__(self) -> int:
        return len(self.state)


def render_scenes(
    rng: np.random.Generator,
    count: int,
    robot: str = "fr3",
    cameras: tuple[str, ...] = ("front", "wrist"),
    image_size: int = 96,
    randomization: str = "none",
    world_seed: int = 0,
) -> Scenes:
    """`count` random scenes: any layout, also near ones, blocks held or on the plate, any arm pose; each varied anew as
    `randomization` says, and all alike by what it draws once, from `world_seed`. Raises `Unknown`, `UsageError` as
    `TaskWorld` does."""
    world = TaskWorld(_ASKED[0].name, robot, cameras, image_size, randomization, world_seed)
    layouts = LayoutSampler(robot)
    images: dict[str, NDArray[np.uint8]] = {
        name: np.empty((count, image_size, image_size, 3), np.uint8) for name in cameras
    }
    state, views, held = [], [], np.empty(count, np.int64)
    objects = np.empty((count, len(COLORS) + 1, POINTS_SHAPE[1]), np.float32)
    hand = np.empty((count, POINTS_SHAPE[1]), np.float32)
    try:
        for i in range(count):
            held[i] = _place(world, layouts, rng)
            for name, image in world.body.images().items():
                images[name][i] = image
            measured, placed = world.body.joint_state(), world.state
            state.append(layouts.arm.proprio(measured.q, measured.gripper_width_m))
            views.append(world.view())
            labels = views[i].label(np.vstack([placed.blocks, placed.plate, placed.tcp]))
            objects[i], hand[i] = labels[:-1], labels[-1]
    finally:
        world.close()
    return Scenes(images, np.stack(state), objects, hand, held, tuple(views))


def _place(world: TaskWorld, layouts: LayoutSampler, rng: np.random.Generator) -> int:
    """Another scene; which block is held, -1 for none. One in which distractors find no room is drawn again."""
    while True:
        placement, held = layouts.sample(rng)
        try:
            world.place(placement, int(rng.integers(2**32)) if world.randomizer else 0)
        except NoLayout:
            continue
        return held


def grounding_samples(
    scenes: Scenes, index: int, rng: np.random.Generator, count: int = 1
) -> list[tuple[str, NDArray[np.float32]]]:
    """Sentences about a scene with their `points` (3, 5): what each names, NaN where it names nothing.

    Half of them are the tasks' own orders, the others name a block, the plate, or a place by its relation.
    """
    return [_sample(scenes, index, rng) for _ in range(count)]


def _sample(scenes: Scenes, index: int, rng: np.random.Generator) -> tuple[str, NDArray[np.float32]]:
    objects = scenes.objects[index]
    if rng.random() < 0.5:
        return _task_order(objects, scenes.views[index], rng)
    kind = rng.integers(5)
    if kind == 0:
        return _choice(_PLATE_QUESTIONS, rng), point_at(objects[PLATE])
    if kind == 1:
        color = int(rng.integers(len(COLORS)))
        return _choice(_QUESTIONS, rng).format(what=f"{COLORS[color]} {_noun(rng)}"), point_at(objects[color])
    if kind == 2 and scenes.held[index] >= 0:
        held = objects[scenes.held[index]]
        return _choice(_QUESTIONS, rng).format(what=f"{_noun(rng)} in the gripper"), point_at(held)
    what, target = _relation(objects, rng)
    return _choice(_QUESTIONS, rng).format(what=what), point_at(objects[target])


_QUESTIONS = (
    "point to the {what}",
    "where is the {what}",
    "find the {what}",
    "show me the {what}",
    "look at the {what}",
)
_PLATE_QUESTIONS = tuple(question.format(what="plate") for question in _QUESTIONS)
_NOUNS = ("block", "cube")


def _task_order(objects: NDArray[np.float32], view: View, rng: np.random.Generator) -> tuple[str, NDArray[np.float32]]:
    """A training phrasing of one of the tasks, about any block."""
    task = _ASKED[rng.integers(len(_ASKED))]
    color = int(rng.integers(len(COLORS)))
    side = tuple(SIDES)[rng.integers(len(SIDES))]
    places = view.places(objects)  # (5, 3)
    goal = Goal(COLORS[color], places[color], side)
    state = SceneState(NOWHERE, places[:PLATE], places[PLATE], 0.0)
    destination = view.label(task.destination(state, goal)[None])[0]
    sentence = _choice(task.templates, rng).format(color=goal.color, side=side)
    return sentence, point_at(objects[color], destination)


def _relation(objects: NDArray[np.float32], rng: np.random.Generator) -> tuple[str, int]:
    """A block named by where it is: the words after "the", and its index. Only where it is unambiguous."""
    questions = extremes(objects)
    start = int(rng.integers(len(questions) + 1))
    for words, key in (questions[start:] + questions[:start]) if start < len(questions) else ():
        first = clear_first(key)
        if first is not None:
            return words.format(noun=_noun(rng)), first
    return _beside(objects[:PLATE, :3], rng)


def extremes(objects: NDArray[np.float32]) -> tuple[tuple[str, NDArray[np.float32]], ...]:
    """Words for the block that comes first by a key, and each block's key (4,) [m]."""
    blocks = objects[:PLATE, :3]
    return (
        ("leftmost {noun}", -blocks[:, 1]),
        ("rightmost {noun}", blocks[:, 1]),
        ("{noun} closest to the robot", blocks[:, 0]),
        ("{noun} farthest from the robot", -blocks[:, 0]),
        ("{noun} nearest to the plate", np.linalg.norm(blocks[:, :2] - objects[PLATE, :2], axis=1)),
        ("highest {noun}", -blocks[:, 2]),
    )


def clear_first(key: NDArray[np.float32]) -> int | None:
    """Which comes first by `key`; None where the second is within `CLEAR_M` of it, so that there is no clear answer."""
    order = np.argsort(key)
    return int(order[0]) if key[order[1]] - key[order[0]] > CLEAR_M else None


def _beside(blocks: NDArray[np.float32], rng: np.random.Generator) -> tuple[str, int]:
    """ "block left of the red block": the only one there within 0.2 m; else simply the reference block."""
    for reference in rng.permutation(len(COLORS)):
        name = f"{COLORS[reference]} {_noun(rng)}"
        for side, sign in (("left", 1.0), ("right", -1.0)):
            offset = sign * (blocks[:, 1] - blocks[reference, 1])
            there = np.flatnonzero((offset > 0.03) & (offset < 0.2))
            if len(there) == 1 and not ((offset > 0.0) & (offset <= 0.03)).any():
                return f"{_noun(rng)} {side} of the {name}", int(there[0])
    color = int(rng.integers(len(COLORS)))
    return f"{COLORS[color]} {_noun(rng)}", color


def _choice(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[rng.integers(len(options))]


def _noun(rng: np.random.Generator) -> str:
    return _choice(_NOUNS, rng)


def point_at(target: NDArray[np.float32], destination: NDArray[np.floating] | None = None) -> NDArray[np.float32]:
    """(3, 5): rows target and destination, NaN where there is none; the hand, which nobody names, is left NaN."""
    points = np.full(POINTS_SHAPE, np.nan, np.float32)
    points[0] = target
    if destination is not None:
        points[1] = destination
    return points
