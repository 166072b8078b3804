"""Success by task on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from volar.sim.report_page import rate, spread
from volar.sim.report_success import kind_of_interval, label, randomized, rows, told

Results = Mapping[str, Any]


def print_table(results: Results) -> None:
    """Rates with intervals, and what was lost."""
    from rich.console import Console

    console = Console()
    console.print(_table(results, f"success on {results['suite']}, {kind_of_interval(results)}", told(results)))
    if others := randomized(results):
        console.print(_table(results, f"under randomization, beside {results['randomization']}", others))
    overall = results["overall"]
    if overall["broken"]:
        console.print(f"broke down, counted as failures: {overall['broken']} (the report says how to run them again)")
    if overall["invalid"]:
        console.print(f"invalid seeds, not counted: {overall['invalid']} (the report says why)")


def _table(results: Results, title: str, others: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(title=title)
    table.add_column("task", no_wrap=True)
    for column in ("success", *map(label, others)):
        table.add_column(column, justify="right", no_wrap=True)
    for name, tally, beside in rows(results, others):
        if name == "overall":
            table.add_section()
        counted = f"{tally['successes']}/{tally['episodes']}  {rate(tally)}\n{spread(tally)}"
        table.add_row(name, counted, *(f"{rate(other)}\n{spread(other)}" for other in beside.values()))
    return table
