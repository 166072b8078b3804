"""What the HTML reports share: the look, and how numbers and bars are written."""

import html
from collections.abc import Iterable, Mapping
from typing import Any

from volar.sim.results import interval

Results = Mapping[str, Any]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5c6a7a; --line: #dde3ea; --card: #fff; --page: #f5f7f9;
  --good: #17855f; --bad: #c0392b; --wrong: #b7791f; --note: #eef2f6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --soft: #9aa7b4; --line: #2c3640; --card: #1a2128;
  --page: #12171c; --good: #3fbf92; --bad: #ef7a6d; --wrong: #e0a94a; --note: #222b34; } }
* { box-sizing: border-box } body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; } main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px }
h1 { font-size: 26px; margin: 0 } h2 { font-size: 17px; margin: 36px 0 10px } p { margin: 6px 0 }
.soft, figcaption, th { color: var(--soft) } code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px;
  overflow-x: auto } .card + .card { margin-top: 14px }
.big { font-size: 42px; font-weight: 650; line-height: 1.1 } .figures { display: flex; gap: 14px; flex-wrap: wrap;
  margin-top: 18px } .figures .card { flex: 1 1 200px; margin: 0 } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: 7px 10px; border-bottom: 1px solid var(--line); white-space: nowrap }
tr:last-child td { border-bottom: 0 } th { font-weight: 500; font-size: 13px }
td.n { font-variant-numeric: tabular-nums } td small { color: var(--soft); font-weight: 400 }
tr.all td { font-weight: 650 } .films { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fill, minmax(310px, 1fr)) } .films .card { margin: 0 }
figure video { width: 100%; aspect-ratio: 2; display: block; background: var(--note) }
figure.card { padding: 0 0 8px; overflow: hidden } figcaption { padding: 8px 12px 0; font-size: 13px }
.tag { font-weight: 650 } .ok { color: var(--good) } .no { color: var(--bad) } svg { display: block }
a { color: inherit } td.v { white-space: normal } svg text { fill: var(--soft); font: 11px system-ui, sans-serif }
.groups { display: flex; gap: 14px } .groups > div { flex: 1 1 0; min-width: 118px; font-size: 12px }
summary { cursor: pointer; color: var(--soft); padding: 8px 0 }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """One self-contained document."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{e(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def e(text: object) -> str:
    """Text as text, whatever is in it."""
    return html.escape(str(text))


def section(title: str, *parts: str) -> str:
    """A heading with what is below it; nothing when there is nothing below it."""
    body = "".join(parts)
    return f"<h2>{e(title)}</h2>{body}" if body else ""


def card(*parts: str) -> str:
    return f'<div class="card">{"".join(parts)}</div>'


def note(text: str) -> str:
    """A paragraph that explains; `text` is HTML."""
    return f'<p class="soft">{text}</p>'


def table(heads: Iterable[str], rows: Iterable[str]) -> str:
    """`heads` are text, `rows` whole `<tr>` elements."""
    return f"<table><tr>{''.join(f'<th>{e(head)}</th>' for head in heads)}</tr>{''.join(rows)}</table>"


def row(*cells: str, number: bool = False) -> str:
    """Cells of HTML; the first is a name, the others numbers where `number` is set."""
    kind = " class=n" if number else ""
    return f"<tr><td>{cells[0]}</td>{''.join(f'<td{kind}>{cell}</td>' for cell in cells[1:])}</tr>"


def rate(tally: Results) -> str:
    """`93.3%`, or a dash when no episode counted."""
    return "–" if tally["success_rate"] is None else f"{tally['success_rate']:.1%}"


def spread(tally: Results) -> str:
    """`77.9–99.2 %`, the interval."""
    low, high = interval(tally)
    return f"{100 * low:.1f}–{100 * high:.1f} %"


def bar(tally: Results, below: Results | None = None, width: int = 240) -> str:
    """Rate as a tick, interval as a band, on an axis from 0 to 100 %; a second one below it, thinner."""
    axis = "".join(
        f'<line x1="{width * v}" x2="{width * v}" y1="0" y2="26" stroke="var(--line)"/>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    thin = _band(below, width, 18, 5, "var(--wrong)") if below else ""
    label = f"{rate(tally)}, interval {spread(tally)}"
    return (
        f'<svg class="interval" width="{width}" height="27" role="img" aria-label="{label}">{axis}'
        f"{_band(tally, width, 4, 10, 'var(--good)')}{thin}</svg>"
    )


def _band(tally: Results, width: int, y: int, height: int, colour: str) -> str:
    low, high = (width * value for value in interval(tally))
    band = (
        f'<rect x="{low:.1f}" y="{y}" width="{max(high - low, 1):.1f}" height="{height}" rx="2" fill="{colour}" '
        'opacity=".35"/>'
    )
    if tally["success_rate"] is None:
        return band
    x = min(max(width * tally["success_rate"] - 1.5, 0), width - 3)
    return f'{band}<rect x="{x:.1f}" y="{y - 1}" width="3" height="{height + 2}" fill="{colour}"/>'
