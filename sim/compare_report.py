"""A comparison as a page and on the terminal."""

from collections.abc import Mapping
from typing import Any

from volar.sim.comparison import sentence
from volar.sim.report_page import card, e, note, page, row, section, table

Results = Mapping[str, Any]
_HEADS = ("task", "episodes", "both", "only a", "only b", "neither", "b - a", "95 % interval", "", "p", "more needed")


def compare_page(result: Results) -> str:
    """compare.html, which needs nothing else."""
    title = f"Volar comparison: {', '.join(found['name'] for found in result['evaluations'])}"
    parts = [
        f"<h1>{e(title)}</h1>",
        note(
            f"suite {e(result['suite'])} · robot {e(result['robot'])} · seed {result['seed']} · randomization "
            f"{e(result['randomization'])} · latency {result['latency_ms']:g} ms · the same episodes for each policy"
        ),
    ]
    for found in result["comparisons"]:
        lines = [_line(name, judged) for name, judged in _rows(found)]
        lines[-1] = lines[-1].replace("<tr>", "<tr class=all>", 1)
        parts.append(
            section(
                f"a: {found['a']}, b: {found['b']}",
                card(f"<b>{e(sentence(found['overall'], found['a'], found['b']))}</b>"),
                card(table(_HEADS, lines)),
                note(e(found["note"])) if found["note"] else "",
            )
        )
    parts.append(
        note(
            "Exact McNemar test, two-sided, at 5 %; p is corrected for the number of tasks, or of comparisons (Holm). "
            "Intervals: Newcombe, paired, each for itself. More needed: for a power of 80 %, should the rates hold; "
            "to test again after these is a second look, which errs in more than 5 %."
        )
    )
    facts = [
        row(e(f["name"]), f"<code>{e(f['policy'])}</code>", f"<code>{f['policy_sha256'][:16]}</code>")
        for f in result["evaluations"]
    ]
    parts.append(section("Policies", card(table(("evaluation", "policy", "SHA-256"), facts))))
    return page(title, parts)


def print_comparison(result: Results) -> None:
    """The judgement of each comparison, and its table."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for found in result["comparisons"]:
        grid = Table(title=f"a: {found['a']}, b: {found['b']}")
        for head in ("task", "episodes", "only a", "only b", "b - a", "p", "needed"):
            grid.add_column(head, justify="left" if head == "task" else "right", no_wrap=True)
        for name, judged in _rows(found):
            if name == "overall":
                grid.add_section()
            episodes, _, only_a, only_b, _, difference, interval, p, more = _cells(judged)
            grid.add_row(name, episodes, only_a, only_b, f"{difference}\n{interval}", p, more)
        console.print(grid)
        console.print(sentence(found["overall"], found["a"], found["b"]), soft_wrap=True)
        if found["note"]:
            console.print(found["note"], soft_wrap=True)


def _rows(found: Results) -> list[tuple[str, Results]]:
    return [*found["tasks"].items(), ("overall", found["overall"])]


def _cells(judged: Results) -> list[str]:
    low, high = (100 * value for value in judged["interval"])
    more = judged["more_episodes"]
    counts = [str(judged[key]) for key in ("episodes", "both", "only_a", "only_b", "neither")]
    points = [f"{100 * judged['difference']:+.1f}", f"{low:+.1f} to {high:+.1f}"]
    return [*counts, *points, f"{judged['p_holm']:.2g}", ">20000" if more is None else str(more)]


def _line(name: str, judged: Results) -> str:
    cells = _cells(judged)
    tag = f' <span class="tag ok">{judged["better"]} is better</span>' if judged["better"] else ""
    return row(e(name) + tag, *cells[:7], _difference_bar(judged), *cells[7:], number=True)


def _difference_bar(judged: Results, width: int = 160) -> str:
    """From -100 to +100 points, zero in the middle."""
    low, high, middle = (width * (1 + value) / 2 for value in (*judged["interval"], judged["difference"]))
    label = f"difference {judged['difference']:+.1%}"
    return (
        f'<svg class="interval" width="{width}" height="20" role="img" aria-label="{label}"><line x1="{width / 2}" '
        f'x2="{width / 2}" y1="0" y2="20" stroke="var(--soft)"/><rect x="{low:.1f}" y="5" rx="2" '
        f'width="{max(high - low, 1):.1f}" height="10" fill="var(--good)" opacity=".35"/><rect '
        f'x="{middle - 1.5:.1f}" y="4" width="3" height="12" fill="var(--good)"/></svg>'
    )
