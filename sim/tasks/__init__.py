"""The tasks by name. A new one is one file and one line here."""

from volar.robots.errors import Unknown
from volar.sim.tasks.close_drawer import CloseDrawer
from volar.sim.tasks.lift import Lift
from volar.sim.tasks.open_drawer import OpenDrawer
from volar.sim.tasks.place_in import PlaceIn
from volar.sim.tasks.place_on import PlaceOn
from volar.sim.tasks.press_button import PressButton
from volar.sim.tasks.push import Push
from volar.sim.tasks.push_to import PushTo
from volar.sim.tasks.put_in_drawer import PutInDrawer
from volar.sim.tasks.reach import Reach
from volar.sim.tasks.sort import Sort
from volar.sim.tasks.stack import Stack
from volar.sim.tasks.task import Task
from volar.sim.tasks.turn_lever import TurnLever

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Reach(),
        Push(),
        PushTo(),
        Lift(),
        PlaceOn(),
        PlaceIn(),
        Stack(),
        Sort(),
        OpenDrawer(),
        CloseDrawer(),
        PressButton(),
        TurnLever(),
        PutInDrawer(),
    )
}
SUITES: dict[str, tuple[str, ...]] = {
    "tabletop": tuple(TASKS),
    "starter": ("reach", "push", "lift", "place_on"),  # four to begin with
}


def load_task(name: str) -> Task:
    """The task of that name. Raises `Unknown` naming the choices."""
    if name not in TASKS:
        raise Unknown("task", name, TASKS)
    return TASKS[name]


def load_suite(name: str) -> tuple[Task, ...]:
    """The tasks of that suite. Raises `Unknown` naming the choices."""
    if name not in SUITES:
        raise Unknown("suite", name, SUITES)
    return tuple(TASKS[task] for task in SUITES[name])
