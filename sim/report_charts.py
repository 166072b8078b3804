"""The report's curves: success and loss against training, success against what randomization drew."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volar.sim.report_page import bar, card, e, note, section, spread
from volar.sim.report_success import label
from volar.sim.results import interval

Results = Mapping[str, Any]
_WIDTH, _HEIGHT, _LEFT, _TOP = 900, 180, 44, 10
_SHOWN = 6  # axes of a condition; the others are folded away


def learning_curve(points: Sequence[Results]) -> str:
    """Success with its interval against the training step, from several checkpoints."""
    if len(points) < 2:
        return ""
    first, last = points[0]["step"], points[-1]["step"]

    def x(point: Results) -> float:
        return float(_LEFT + 8 + (_WIDTH - _LEFT - 20) * (point["step"] - first) / max(last - first, 1))

    def y(value: float) -> float:
        return _TOP + _HEIGHT * (1 - value)

    edge = [(x(p), y(interval(p)[1])) for p in points] + [(x(p), y(interval(p)[0])) for p in reversed(points)]
    line = [(x(p), y(p["success_rate"] or 0.0)) for p in points]
    grid = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y(v)}" y2="{y(v)}" stroke="var(--line)"/>'
        f'<text x="{_LEFT - 6}" y="{y(v) + 4}" text-anchor="end">{v:.0%}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    )
    dots = "".join(
        f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4" fill="var(--good)"><title>step {p["step"]}: {p["successes"]} of '
        f"{p['episodes']}, {spread(p)}</title></circle>"
        f'<text x="{cx:.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{p["step"]}</text>'
        for p, (cx, cy) in zip(points, line, strict=True)
    )
    svg = (
        f'<svg viewBox="0 0 {_WIDTH + 20} {_HEIGHT + 36}" width="100%" role="img" aria-label="success by step">'
        f'{grid}<polygon points="{_points(edge)}" fill="var(--good)" opacity=".2"/>'
        f'<polyline points="{_points(line)}" fill="none" stroke="var(--good)" stroke-width="2"/>{dots}</svg>'
    )
    text = "Success rate over all tasks with its 95 % interval, by training step; each on the same episodes."
    return section("Success against training", card(svg), note(text))


def loss_curve(policy: Path) -> str:
    """The losses of the run that left the policy, where its metrics.jsonl is still there."""
    run = next((folder for folder in policy.resolve().parents[:3] if (folder / "metrics.jsonl").is_file()), None)
    points: list[tuple[float, float]] = []
    for line in (run / "metrics.jsonl").read_text().splitlines() if run else ():
        try:
            found = json.loads(line)
            points.append((float(found["step"]), float(found["total"])))
        except (ValueError, KeyError, TypeError):
            continue
    if len(points) < 2:
        return ""
    (first, last), top = (points[0][0], points[-1][0]), max(loss for _, loss in points)
    drawn = [
        (_LEFT + (_WIDTH - _LEFT) * (step - first) / max(last - first, 1), _TOP + _HEIGHT * (1 - loss / max(top, 1e-9)))
        for step, loss in points[:: max(1, len(points) // 600)]
    ]
    svg = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 30}" width="100%" role="img" aria-label="training loss">'
        f'<polyline points="{_points(drawn)}" fill="none" stroke="var(--good)" stroke-width="1.5"/>'
        f'<text x="0" y="14">{top:.2f}</text><text x="0" y="{_HEIGHT + 12}">0</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT + 26}">step {first:.0f}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 26}" text-anchor="end">step {last:.0f}</text></svg>'
    )
    return section("Training loss", card(svg))


def sensitivity_section(sensitivity: Mapping[str, Sequence[Results]]) -> str:
    """Axis by axis, the largest effect first."""
    cards = []
    for condition, axes in sensitivity.items():
        lines = [_axis(axis) for axis in axes]
        heads = "".join(f"<th>{head}</th>" for head in ("axis", "success by what was drawn", "effect"))
        folded = f"<table>{''.join(lines[_SHOWN:])}</table>"
        more = f"<details><summary>{len(lines) - _SHOWN} more axes</summary>{folded}</details>"
        cards.append(
            card(
                f'<p class="soft">{e(label(condition))}</p>',
                f"<table><tr>{heads}</tr>{''.join(lines[:_SHOWN])}</table>",
                more if len(lines) > _SHOWN else "",
            )
        )
    text = (
        "Effect: success in the highest third of an axis less that in the lowest (best less worst value, where there "
        "is no order), in points, with an interval that holds for all axes of a table at once (95 %, Bonferroni)."
    )
    return section("Sensitivity to what was drawn", *cards, note(text)) if cards else ""


def _axis(axis: Results) -> str:
    groups = "".join(
        f"<div>{bar(group, width=110)}<span class=soft>{e(group['label'])}</span><br>"
        f"{group['success_rate']:.0%} of {group['episodes']}</div>"
        for group in axis["groups"]
    )
    low, high = (100 * value for value in axis["interval"])
    verdict = '<span class="tag no">matters</span>' if axis["matters"] else "<small>no clear effect</small>"
    return (
        f'<tr><td class=v>{e(axis["axis"])}<br>{verdict}</td><td><div class="groups">{groups}</div></td>'
        f"<td class=n>{100 * axis['effect']:+.1f}<br><small>{low:+.1f} to {high:+.1f}</small></td></tr>"
    )


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
