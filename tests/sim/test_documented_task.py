"""The task of docs/add-a-task.md, taken from its text, is one: it starts, is asked for, and its expert succeeds."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from volar.sim import tasks
from volar.sim.tasks.task import Task
from volar.sim.world import StepDriver, TaskWorld

PAGE = Path(__file__).parents[2] / "docs" / "add-a-task.md"


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> Task:
    (source,) = (
        text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "class Hover" in text
    )
    names: dict[str, Any] = {}
    exec(compile(source, PAGE.name, "exec"), names)
    hover: Task = names["Hover"]()
    monkeypatch.setitem(tasks.TASKS, hover.name, hover)
    return hover


def test_the_documented_task_can_be_done(task: Task) -> None:
    driver = StepDriver(TaskWorld(task.name, cameras=()))
    for seed in range(3):
        driver.reset(seed)
        assert driver.world.goal.color in driver.world.instruction
        while not driver.world.success():
            assert driver.world.data.time < task.max_steps / 10
            driver.step(driver.world.expert().astype(np.float32))
