"""Learning curves of fine-tuning runs in one picture: success against environment steps, a panel a group of runs.

    python -P benchmarks/rl_curves.py docs/rl-curves.svg "delays=runs/late-0,runs/late-1,runs/late-2" "stack=runs/stack"

Lines with dots: held-out episodes, acted in as deployed; thin lines: what was tried out, a mean of five updates. One
colour a run, in the order given.
"""

import json
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

COLORS = ("#1b7837", "#762a83", "#e08214", "#2166ac")
COLUMNS, WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 2, 470, 250, 44, 28, 40
SMOOTHED = 5  # updates


def curves(run: Path) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Held-out success and success while trying out of one run, both against environment steps."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = sorted({line["update"]: line for line in lines}.values(), key=lambda line: line["update"])
    held_out = [(line.get("env_steps", 0.0), line["held_out"]) for line in lines if "held_out" in line]
    tried = [(line["env_steps"], line["success"]) for line in lines if "success" in line]
    smooth = []
    for i in range(len(tried)):
        some = [success for _, success in tried[max(0, i - SMOOTHED // 2) : i + SMOOTHED // 2 + 1]]
        smooth.append((tried[i][0], sum(some) / len(some)))
    return held_out, smooth


def panel(title: str, runs: list[Path], left: float, top: float) -> list[str]:
    """The elements of one panel, whose upper left corner is at (left, top)."""
    found = [curves(run) for run in runs]
    most = max(x for both in found for points in both for x, _ in points)
    wide, high = WIDTH - LEFT - 16, HEIGHT - TOP - BOTTOM

    def at(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(left + LEFT + wide * x / most, top + TOP + high * (1 - y)) for x, y in points]

    parts = [f'<text x="{left + LEFT}" y="{top + 16}" font-weight="bold">{escape(title)}</text>']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + TOP + high * (1 - share)
        parts.append(f'<line x1="{left + LEFT}" x2="{left + WIDTH - 16}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{left + LEFT - 6}" y="{y + 4}" text-anchor="end">{share:.0%}</text>')
    for share in (0.0, 0.5, 1.0):
        x = left + LEFT + wide * share
        anchor = "middle" if share < 1 else "end"
        parts.append(
            f'<text x="{x}" y="{top + HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">{share * most / 1000:.0f}</text>'
        )
    middle = left + LEFT + wide / 2
    parts.append(f'<text x="{middle}" y="{top + HEIGHT - 8}" text-anchor="middle">1,000 environment steps</text>')
    for (held_out, tried), color in zip(found, COLORS, strict=False):
        for points, width, opacity in ((at(tried), 1.2, 0.55), (at(held_out), 2.2, 1.0)):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            style = f'fill="none" stroke="{color}" stroke-width="{width}" opacity="{opacity}"'
            parts.append(f'<polyline points="{path}" {style}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in at(held_out)]
    return parts


def main(output: Path, groups: list[str]) -> None:
    rows = -(-len(groups) // COLUMNS)
    size = COLUMNS * WIDTH, rows * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[0]}" height="{size[1]}" font-family="sans-serif" '
        f'font-size="11"><rect width="{size[0]}" height="{size[1]}" fill="white"/>'
    ]
    for i, group in enumerate(groups):
        title, _, folders = group.partition("=")
        runs = [Path(folder) for folder in folders.split(",")]
        if len(runs) > len(COLORS):
            raise SystemExit(f"{title!r} has {len(runs)} runs; a panel shows at most {len(COLORS)}")
        parts += panel(title, runs, WIDTH * (i % COLUMNS), HEIGHT * (i // COLUMNS))
    output.write_text("\n".join([*parts, "</svg>"]) + "\n")
    print(output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:]) if len(sys.argv) > 2 else print(__doc__)
