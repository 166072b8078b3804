"""From an instruction to the task and goal it means, so that a scene can be chosen in which it can be judged."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from volar.robots.errors import UsageError
from volar.sim.closed_loop import episode_seed
from volar.sim.colors import COLORS
from volar.sim.tasks import TASKS, load_task
from volar.sim.tasks.layout import NoLayout
from volar.sim.tasks.task import SIDES
from volar.sim.world import TaskWorld

_SEARCHED = 1000  # seeds tried for a scene; one in twelve has two given colours


@dataclass(frozen=True)
class Order:
    """A task and what an instruction says about its goal; an empty string leaves that open."""

    task: str
    color: str = ""
    side: str = ""
    other: str = ""

    def fits(self, world: TaskWorld) -> bool:
        """The scene's own goal is the one ordered."""
        goal = world.goal
        said = ((self.color, goal.color), (self.side, goal.side), (self.other, goal.other))
        return all(ordered in ("", own) for ordered, own in said)


def understand(instruction: str, task: str | None = None) -> Order:
    """The order behind an instruction: one of a task's phrasings, or, for a given `task`, any text that names one
    colour, or two in the order of the task's phrasings, and a side where the task has one. Raises `UsageError`,
    also for a phrasing of another task than `task`, and `Unknown`."""
    words = " ".join(re.findall(r"[a-z0-9]+", instruction.lower()))
    names = [load_task(task).name] if task else list(TASKS)
    for name in [*names, *(other for other in TASKS if other not in names)]:
        for template in (*TASKS[name].templates, *TASKS[name].held_out_templates):
            if match := re.fullmatch(_pattern(template), words):
                if name not in names:
                    raise UsageError(
                        f"instruction {instruction!r} asks for {name}, and success would be judged by task={task}: "
                        "leave task= out, or say what that task asks for"
                    )
                found = match.groupdict()
                return Order(name, *(found.get(part) or "" for part in ("color", "side", "other")))
    colors = [word for word in words.split() if word in COLORS]
    sides = [word for word in words.split() if word in SIDES]
    template = TASKS[names[0]].templates[0]
    wanted = 2 if "{other}" in template else 1
    if task and len(colors) == wanted and len(sides) == ("{side}" in template):
        return Order(names[0], colors[0], "".join(sides), colors[1] if wanted == 2 else "")
    examples = "; ".join(TASKS[name].templates[0].format(color="red", side="left", other="blue") for name in names)
    if task:
        number = "one color" if wanted == 1 else "two colors"
        side = f"one side ({', '.join(SIDES)})" if "{side}" in template else "no side"
        raise UsageError(
            f"instruction {instruction!r} must name {number} ({', '.join(COLORS)}) and {side}, such as {examples!r}"
        )
    raise UsageError(f"no task is known for the instruction {instruction!r}; give task=... or say it like: {examples}")


def seeds(order: Order, world: TaskWorld, seed: int) -> Iterator[int]:
    """Seeds of scenes whose goal is the one ordered, among those that volar-evaluate uses for this `seed`. Raises
    `UsageError` when there are no more."""
    for index in range(_SEARCHED):
        found = episode_seed(seed, order.task, index)
        try:
            world.reset(found)
        except NoLayout:
            continue
        if order.fits(world):
            yield found
    raise UsageError(f"only {_SEARCHED} scenes are searched for {order}; ask for fewer episodes")


def _pattern(template: str) -> str:
    colors = "|".join(COLORS)
    return template.format(
        color=f"(?P<color>{colors})", side=f"(?P<side>{'|'.join(SIDES)})", other=f"(?P<other>{colors})"
    )
