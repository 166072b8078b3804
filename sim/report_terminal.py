"""Success by task on the terminal."""

from collections.abc import Mapping
from typing import Any

from volar.sim.report_page import rate, spread
from volar.sim.report_success import kind_of_interval, label, randomized, rows, told


def print_table(results: Mapping[str, Any]) -> None:
    """Rates with intervals, and what was lost."""
    from rich.console import Console
    from rich.table import Table

    others = [*told(results), *randomized(results)]
    table = Table(title=f"success on {results['suite']}, {kind_of_interval(results)}")
    table.add_column("task")
    for column in ("success", "interval", *map(label, others)):
        table.add_column(column, justify="right", no_wrap=True)
    for name, tally, beside in rows(results, others):
        if name == "overall":
            table.add_section()
        cells = [name, f"{tally['successes']}/{tally['episodes']}  {rate(tally)}", spread(tally)]
        table.add_row(*cells, *(f"{rate(other)}\n{spread(other)}" for other in beside.values()))
    console = Console()
    console.print(table)
    overall = results["overall"]
    if overall["broken"]:
        console.print(f"broke down, counted as failures: {overall['broken']} (the report says how to run them again)")
    if overall["invalid"]:
        console.print(f"invalid seeds, not counted: {overall['invalid']} (the report says why)")
