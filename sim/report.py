"""report.html: one file with everything a reader needs, films included; and the table on the screen."""

import base64
import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from volar.robots.contract import PolicyContract

Results = Mapping[str, Any]
# Conditions beside the standard one: in a table's head, and in a sentence.
_OTHERS = {
    "wrong_instruction": ("wrong instruction", "told another colour"),
    "held_out_instruction": ("new phrasing", "told in a phrasing that no demonstration has"),
}

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5c6a7a; --line: #dde3ea; --card: #fff; --page: #f5f7f9;
  --good: #17855f; --bad: #c0392b; --wrong: #b7791f; --band: #bfe3d5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9aa7b4; --line: #2c3640; --card: #1a2128;
  --page: #12171c; --good: #3fbf92; --bad: #ef7a6d; --wrong: #e0a94a; --band: #1f4d3e; } }
* { box-sizing: border-box } body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; } main { max-width: 1060px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 17px; margin: 36px 0 10px } p { margin: 6px 0 }
.soft, figcaption, th { color: var(--soft) } code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px;
  overflow-x: auto }
.big { font-size: 46px; font-weight: 650; line-height: 1.1 } .figures { display: flex; gap: 14px; flex-wrap: wrap;
  margin-top: 18px } .figures .card { flex: 1 1 220px } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: 7px 10px; border-bottom: 1px solid var(--line); white-space: nowrap }
tr:last-child td { border-bottom: 0 } th { font-weight: 500; font-size: 13px }
td.n { font-variant-numeric: tabular-nums }
tr.all td { font-weight: 650 } .films { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)) }
figure { margin: 0; padding: 0 0 8px } figure video { width: 100%; display: block; border-radius: 9px 9px 0 0 }
figure.card { padding: 0 0 8px; overflow: hidden } figcaption { padding: 8px 12px 0; font-size: 13px }
.tag { font-weight: 650 } .ok { color: var(--good) } .no { color: var(--bad) } svg { display: block }
td.v { white-space: normal } svg text { fill: var(--soft); font: 11px system-ui, sans-serif }
"""


def write_report(output: Path, results: Results, contract: "PolicyContract | None" = None) -> Path:
    """Writes `output/report.html` from the results and the films beside it; returns its path."""
    overall = results["overall"]
    title = f"Volar evaluation: {results['suite']}"
    parts = [
        f"<h1>{_e(title)}</h1>",
        f'<p class="soft">policy <code>{_e(results["policy"])}</code> · robot {_e(results["robot"])} · seed '
        f"{results['seed']} · randomization {_e(results['randomization'])} · latency {results['latency_ms']:g} ms</p>",
        _figures(results),
        "<h2>Success by task</h2>",
        f'<div class="card">{_success_table(results)}</div>',
        '<p class="soft">Bars: success rate and Wilson 95 % interval. Wrong instruction: the same scenes, told another '
        "colour, judged by the original goal; a policy that listens scores low.</p>",
        _films(output, results.get("videos", ())),
        _learning_curve(Path(results["policy"])),
        _holds(results["episodes"]),
        _reproduction(results, contract),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_e(title)}: '
        f'{overall["success_rate"]:.0%}</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )
    path = output / "report.html"
    temporary = output / ".report.html"
    temporary.write_text(page)
    temporary.rename(path)
    return path


def print_table(results: Results) -> None:
    """Success by task on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"success on {results['suite']}, Wilson 95 % intervals")
    table.add_column("task")
    for column in ("success", "interval", *(_OTHERS[key][0] for key in _others(results))):
        table.add_column(column, justify="right")
    for name, tally, others in _rows(results):
        if name == "overall":
            table.add_section()
        cells = [name, f"{tally['successes']}/{tally['episodes']}  {tally['success_rate']:.1%}", _interval(tally)]
        table.add_row(*cells, *(f"{other['success_rate']:.1%}  {_interval(other)}" for other in others.values()))
    console = Console()
    console.print(table)
    if results["overall"]["invalid"]:
        number = results["overall"]["invalid"]
        console.print(f"{number} episodes broke down and count as failures (results.json says why)")


def _others(results: Results) -> list[str]:
    """The conditions beside the standard one that were run."""
    return [key for key in _OTHERS if key in results]


def _rows(results: Results) -> Iterable[tuple[str, Results, Mapping[str, Results]]]:
    """(name, tally, tallies under the other conditions) of each task, then overall."""
    others = _others(results)
    for name, tally in results["tasks"].items():
        yield name, tally, {key: results[key]["tasks"][name] for key in others}
    yield "overall", results["overall"], {key: results[key]["overall"] for key in others}


def _interval(tally: Results) -> str:
    low, high = tally["wilson95"]
    return f"{100 * low:.1f}–{100 * high:.1f} %"


def _figures(results: Results) -> str:
    def card(value: str, label: str) -> str:
        return f'<div class="card"><div class="big">{value}</div><div class="soft">{label}</div></div>'

    overall = results["overall"]
    cards = [card(f"{overall['success_rate']:.1%}", f"success in {overall['episodes']} episodes, {_interval(overall)}")]
    for key in _others(results):
        other = results[key]["overall"]
        cards.append(card(f"{other['success_rate']:.1%}", f"{_OTHERS[key][1]}, {_interval(other)}"))
    margin = min(results["margins"].values())
    cards.append(card(f"{margin:.1%}", "smallest margin to a position, velocity, acceleration or jerk limit"))
    return f'<div class="figures">{"".join(cards)}</div>'


def _success_table(results: Results) -> str:
    others = [_OTHERS[key][0] for key in _others(results)]
    heads = ["task", "success", "rate", "interval", "", *others, "broke down"]
    rows = []
    for name, tally, found in _rows(results):
        cells = [
            f"<td>{_e(name)}</td><td class=n>{tally['successes']}/{tally['episodes']}</td>",
            f"<td class=n>{tally['success_rate']:.1%}</td><td class=n>{_interval(tally)}</td>",
            f"<td>{_bar(tally, found.get('wrong_instruction'))}</td>",
            *(f"<td class=n>{other['success_rate']:.1%} ({_interval(other)})</td>" for other in found.values()),
            f"<td class=n>{tally['invalid']}</td>",
        ]
        rows.append(f"<tr{' class=all' if name == 'overall' else ''}>{''.join(cells)}</tr>")
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(rows)}</table>"


def _bar(tally: Results, wrong: Results | None, width: int = 260) -> str:
    """Rate as a tick, interval as a band, on a 0 to 100 % axis; the wrong instruction's below, thinner."""

    def band(item: Results, y: int, height: int, colour: str) -> str:
        low, high = (width * value for value in item["wilson95"])
        x = width * item["success_rate"]
        return (
            f'<rect x="{low:.1f}" y="{y}" width="{max(high - low, 1):.1f}" height="{height}" rx="2" fill="{colour}" '
            f'opacity=".35"/><rect x="{min(max(x - 1.5, 0), width - 3):.1f}" y="{y - 1}" width="3" '
            f'height="{height + 2}" fill="{colour}"/>'
        )

    axis = "".join(
        f'<line x1="{width * v}" x2="{width * v}" y1="0" y2="26" stroke="var(--line)"/>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    below = band(wrong, 18, 5, "var(--wrong)") if wrong else ""
    label = f"{tally['success_rate']:.1%}, interval {_interval(tally)}"
    return (
        f'<svg class="interval" width="{width}" height="27" role="img" aria-label="{label}">{axis}'
        f"{band(tally, 4, 10, 'var(--good)')}{below}</svg>"
    )


def _films(output: Path, videos: Iterable[Results]) -> str:
    """Failures first."""
    figures = []
    for video in sorted(videos, key=lambda video: bool(video["success"])):
        data = base64.b64encode((output / video["file"]).read_bytes()).decode()
        tag = '<span class="tag ok">success</span>' if video["success"] else '<span class="tag no">failure</span>'
        figures.append(
            f'<figure class="card"><video src="data:video/mp4;base64,{data}" controls autoplay muted loop playsinline>'
            f"</video><figcaption>{tag} · {_e(video['task'])} · “{_e(video['instruction'])}” · seed "
            f"{video['seed']}</figcaption></figure>"
        )
    return f'<h2>Films: front and wrist camera</h2><div class="films">{"".join(figures)}</div>' if figures else ""


def _learning_curve(policy: Path) -> str:
    """The losses of the run that left the policy, where its metrics.jsonl is still there."""
    run = next((folder for folder in policy.resolve().parents[:3] if (folder / "metrics.jsonl").is_file()), None)
    points: list[tuple[float, float]] = []
    for line in (run / "metrics.jsonl").read_text().splitlines() if run else ():
        try:
            row = json.loads(line)
            points.append((float(row["step"]), float(row["total"])))
        except (ValueError, KeyError, TypeError):
            continue
    if len(points) < 2:
        return ""
    width, height, left = 900, 180, 44
    (x0, x1), top = (points[0][0], points[-1][0]), max(y for _, y in points)
    step = max(1, len(points) // 600)
    line = " ".join(
        f"{left + (width - left) * (x - x0) / max(x1 - x0, 1):.1f},{10 + height * (1 - y / max(top, 1e-9)):.1f}"
        for x, y in points[::step]
    )
    return (
        f'<h2>Training loss</h2><div class="card"><svg viewBox="0 0 {width} {height + 30}" width="100%" role="img" '
        f'aria-label="training loss"><polyline points="{line}" fill="none" stroke="var(--good)" stroke-width="1.5"/>'
        f'<text x="0" y="14">{top:.2f}</text><text x="0" y="{height + 12}">0</text><text x="{left}" '
        f'y="{height + 26}">step {x0:.0f}</text><text x="{width}" y="{height + 26}" text-anchor="end">step '
        f"{x1:.0f}</text></svg></div>"
    )


def _holds(episodes: Iterable[Results]) -> str:
    """Control periods in which the arm braked or held, by reason."""
    counts: dict[str, int] = {}
    for episode in episodes:
        for reason, number in episode["holds"].items():
            counts[reason] = counts.get(reason, 0) + number
    rows = "".join(
        f"<tr><td>{_e(reason)}</td><td class=n>{number}</td></tr>"
        for reason, number in sorted(counts.items(), key=lambda item: -item[1])
    )
    return (
        f'<h2>Holds</h2><div class="card"><table><tr><th>reason</th><th>control periods</th></tr>{rows}</table></div>'
    )


def _reproduction(results: Results, contract: "PolicyContract | None") -> str:
    replay = results.get("replay", {"episodes": 0, "identical": 0})
    facts: dict[str, str] = {
        "policy SHA-256": results["policy_sha256"],
        "contract SHA-256": results["contract_sha256"],
        "filmed again": f"{replay['identical']} of {replay['episodes']} episodes gave the same bits",
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
    }
    if contract is not None:
        action = contract.action
        facts |= {
            "action": f"{action.kind} ({', '.join(action.names)}), {action.rate_hz:g} Hz, frame {action.frame}, "
            f"gripper {action.gripper}; chunks of {contract.chunk_length}, {contract.execute_steps} executed",
            "state": ", ".join(contract.state_names),
            "cameras": ", ".join(f"{c.name} {c.width}×{c.height}" for c in contract.cameras),
        }
    rows = "".join(
        f"<tr><td>{_e(name)}</td><td class=v><code>{_e(value)}</code></td></tr>" for name, value in facts.items()
    )
    return f'<h2>Contract and versions</h2><div class="card"><table>{rows}</table></div>'


def _e(text: object) -> str:
    return html.escape(str(text))
