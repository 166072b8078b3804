"""What is seen of a run while it goes on fits a terminal of the usual width."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from volar.rl.finetuning import held_out_note, progress_bar, update_note

LONG = {
    "success": 1.0,
    "kl_reference": 2.345,
    "clip_fraction": 1.0,
    "explained_variance": -0.614,
    "env_steps_per_s": 1234.5,
    "reward_precision": 1.0,
}


@pytest.mark.parametrize("known", [0.5, -0.614, -123.0])
def test_everything_shows_at_80_columns(known: float) -> None:
    console = Console(width=80, file=io.StringIO(), record=True, force_terminal=True)
    bar = progress_bar(console)
    metrics = LONG | {"explained_variance": known}
    training: Any = SimpleNamespace(last_success=1.0, best_success=1.0)
    bar.add_task("update 1234", total=1.0, completed=0.3, note=update_note(metrics))
    bar.add_task("trying out", total=64, completed=3, note=held_out_note(training, metrics))
    console.print(bar.get_renderable())
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    ev = "EV <-10" if known < -10 else f"EV {known:.2f}"
    for words in ("update 1234", "success 100%", "KL 2.35", "clip 100%", ev, "1234 steps/s"):
        assert words in lines[0]
    for words in ("held out 100%", "best 100%", "classifier right 100%"):
        assert words in lines[1]


def test_what_is_not_known_is_not_shown() -> None:
    assert update_note({}) == ""
    assert update_note({"success": 0.5, "explained_variance": float("nan")}) == "success 50%"
