"""Success by task on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from volar.sim.failures import failures
from volar.sim.instruction_gaps import sentences
from volar.sim.report_page import rate, spread
from volar.sim.report_success import evaluated, kind_of_interval, label, randomized, rows, told

Results = Mapping[str, Any]


def print_table(results: Results) -> None:
    """Rates with intervals, and what was lost."""
    from rich.console import Console

    console = Console()
    title = f"success on {evaluated(results)}, {kind_of_interval(results)}"
    console.print(_table(results, title, "success", told(results), counts=True))
    if others := randomized(results):
        console.print(_table(results, "under randomization", results["randomization"], others, counts=False))
    for line in sentences(results):
        console.print(line, soft_wrap=True)
    if said := failures(results["episodes"]):
        console.print(said)
    overall = results["overall"]
    if overall["broken"]:
        console.print(f"broke down, counted as failures: {overall['broken']} (the report says how to run them again)")
    if overall["invalid"]:
        console.print(f"invalid seeds, not counted: {overall['invalid']} (the report says why)")


def _table(results: Results, title: str, first: str, others: Sequence[str], counts: bool) -> Any:
    from rich.table import Table

    table = Table(title=title)
    table.add_column("task", no_wrap=True)
    for column in (first, *map(label, others)):
        table.add_column(column, justify="right", no_wrap=True)
    for name, tally, beside in rows(results, others):
        if name == "overall":
            table.add_section()
        cells = [f"{rate(found)}\n{spread(found).removesuffix(' %')}" for found in (tally, *beside.values())]
        cells[0] = f"{tally['successes']}/{tally['episodes']}  {cells[0]}" if counts else cells[0]
        table.add_row(name, *cells)
    return table
