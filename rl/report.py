"""report.html of a fine-tuning run: success before and after on the same episodes, and how it went."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from volar.rl.finetune import FinetuneConfig
from volar.rl.finetuning_run import BEST, CLONED
from volar.robots.config_values import REQUIRED
from volar.robots.provenance import changed, made
from volar.sim.comparison import compare, require_paired, sentence
from volar.sim.conditions import under_randomization
from volar.sim.evaluate import EvaluateConfig, evaluate
from volar.sim.evaluation import versions
from volar.sim.evaluation_folder import REPORT, AnotherEvaluation, write_whole
from volar.sim.report_made import duration, made_section
from volar.sim.report_page import bar, card, e, note, page, rate, row, section, spread, table

BEFORE, AFTER = "before", "after"  # folders of evaluations
SUMMARY = "finetuning.json"
Results = Mapping[str, Any]


def write_finetuning_report(config: FinetuneConfig, workers: int, reason: str) -> dict[str, Any]:
    """Evaluates the cloned and the best policy under each preset, compares them and writes `report.html`.

    Returns what it says: preset -> `before`, `after` (tallies) and `judged` (see `volar.sim.comparison.judge`).
    Evaluations that an interrupt left are continued.
    """
    presets = config.report_presets
    results = [
        _evaluation(config, folder, policy, presets, workers) for folder, policy in ((BEFORE, CLONED), (AFTER, BEST))
    ]
    found: dict[str, Any] = {}
    for i, preset in enumerate(presets):
        before, after = (r if i == 0 else r[under_randomization(preset)] for r in results)
        require_paired(before, after, (BEFORE, AFTER))
        if not before["overall"]["episodes"]:
            print(f"{preset}: no episode of the report could be run")
            continue
        judged = compare(before, [after])[0]
        found[preset] = {
            "before": before["overall"],
            "after": after["overall"],
            "tasks": {
                task: {"before": before["tasks"][task], "after": after["tasks"][task], "judged": judged["tasks"][task]}
                for task in judged["tasks"]  # without those of which no episode could be run
            },
            "judged": judged["overall"],
        }
        print(f"{preset}: {sentence(judged['overall'], 'before', 'after')}")
    how = made("volar-finetune", config, datetime.now(UTC)) | {"versions": versions()}
    summary = {"ended": reason, "presets": found, "made": how}
    write_whole(config.output / SUMMARY, json.dumps(summary, indent=1) + "\n")
    path = write_whole(config.output / REPORT, _page(config, summary))
    print(f"report: {path}")
    return found


def _evaluation(config: FinetuneConfig, folder: str, policy: str, presets: tuple[str, ...], workers: int) -> Results:
    output = config.output / folder
    wanted = EvaluateConfig(
        policy=config.output / policy,
        suite=config.suite,
        tasks=config.task_names,
        episodes=config.report_episodes,
        seed=config.seed,
        randomization=",".join(presets),
        robot=config.robot,
        wrong_instruction=False,
        videos=0,
        workers=workers,
        output=output,
    )
    if not output.exists():
        return evaluate(wanted)
    try:
        return evaluate(replace(wanted, resume=True))
    except AnotherEvaluation as error:  # of the best policy before the run went on, or under other presets
        print(f"evaluated again: {error}")
        return evaluate(replace(wanted, overwrite=True))


def _page(config: FinetuneConfig, summary: Results) -> str:
    title = f"Volar fine-tuning: {', '.join(config.task_names)}"
    settings = f"{config.algorithm} under {config.randomization} · seed {config.seed} · {summary['ended']}"
    parts = [f"<h1>{e(title)}</h1>", f'<p class="soft">policy <code>{e(config.policy)}</code> · {e(settings)}</p>']
    for preset, result in summary["presets"].items():
        lines = [_line(name, result["tasks"][name]) for name in result["tasks"]]
        overall = {"before": result["before"], "after": result["after"], "judged": result["judged"]}
        lines.append(_line("overall", overall).replace("<tr>", "<tr class=all>", 1))
        heads = ("task", "before", "after", "", "difference", "95 % interval", "p")
        verdict = card(f"<b>{e(sentence(result['judged'], 'before', 'after'))}</b>")
        parts.append(section(f"Randomization {preset}", verdict, card(table(heads, lines))))
    parts.append(_links())
    metrics = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    parts.append(section("Over the run", *_curves(metrics), note(_TRIED_OUT) if metrics else ""))
    parts.append(
        note(
            "The same episodes before and after; rates with Wilson 95 % intervals, differences with Newcombe's paired "
            "ones, exact McNemar test, p corrected for the number of tasks (Holm). The policy after is the best of the "
            "held-out evaluations, whose scenes are none of these."
        )
    )
    parts.append(_settings(config))
    how = summary["made"]
    facts = {
        "updates took": _time_line(metrics),
        "versions": ", ".join(f"{name} {version}" for name, version in how["versions"].items()),
    }
    parts.append(made_section(how, more=facts))
    return page(title, parts)


def _links() -> str:
    """To the reports of both evaluations, which lie beside this one: how each task failed, and films of it."""
    links = (f'<a href="{folder}/{REPORT}">evaluation {folder}</a>' for folder in (BEFORE, AFTER))
    return note(" · ".join(links))


def _settings(config: FinetuneConfig) -> str:
    lines = [
        f"<tr><td>{e(key)}</td><td class=v><code>{e(value)}</code></td><td class=v>{_default(default)}</td></tr>"
        for key, (value, default) in changed(config).items()
    ]
    text = "Every setting that is not listed has its default; volar-finetune --help says what each one does."
    return section("Settings", card(table(("setting", "value", "default"), lines)), note(text))


def _default(text: str) -> str:
    return "<small>none: it must be given</small>" if text == REQUIRED else f"<code>{e(text)}</code>"


def _time_line(metrics: list[dict[str, Any]]) -> str:
    """`elapsed_s` goes on where a run is resumed."""
    elapsed_s = metrics[-1]["elapsed_s"] if metrics else 0.0
    return f"{duration(elapsed_s)}, held-out evaluations included and the reports' not"


def _line(name: str, result: Results) -> str:
    before, after, judged = result["before"], result["after"], result["judged"]
    low, high = judged["interval"]
    return row(
        e(name),
        f"{rate(before)} <small>{spread(before)}</small>",
        f"{rate(after)} <small>{spread(after)}</small>",
        bar(after, before),
        f"{100 * judged['difference']:+.1f}",
        f"{100 * low:+.1f} to {100 * high:+.1f}",
        f"{judged['p_holm']:.2g}",
        number=True,
    )


_TRIED_OUT = (
    "Divergences, clipping and entropy are of what is tried out: both policies widened. As fade_updates narrows that, "
    "the same weights lie farther apart."
)
_CURVES = (
    ("held_out", "success in held-out scenes, as deployed"),
    ("success", "success while trying out"),
    ("kl_reference", "divergence of a token, as tried out, from the cloned policy's [nats]"),
    ("kl_step", "divergence of a token in one update [nats]"),
    ("clip_fraction", "share of tokens that were clipped"),
    ("explained_variance", "share of the returns' variance that the critic knew"),
    ("entropy", "entropy of a token [nats]"),
    ("env_steps_per_s", "environment steps a second"),
)


def _curves(lines: list[dict[str, Any]]) -> list[str]:
    cards = []
    for key, text in _CURVES:
        points = [(line["update"], line[key]) for line in lines if key in line]
        if len(points) > 1:
            cards.append(card(f"<p>{e(text)}</p>", curve(points)))
    return cards


def curve(points: list[tuple[float, float]], width: int = 640, height: int = 120) -> str:
    """A line through (update, value), with the values' range written beside it."""
    low, high = min(0.0, *(y for _, y in points)), max(y for _, y in points)
    first, last = points[0][0], points[-1][0]
    spread_x, spread_y = max(last - first, 1), max(high - low, 1e-9)
    path = " ".join(
        f"{40 + (width - 50) * (x - first) / spread_x:.1f},{10 + (height - 30) * (high - y) / spread_y:.1f}"
        for x, y in points
    )
    return (
        f'<svg width="{width}" height="{height}" role="img"><polyline points="{path}" fill="none" stroke="var(--good)" '
        f'stroke-width="2"/><text x="0" y="14">{high:.3g}</text><text x="0" y="{height - 18}">{low:.3g}</text>'
        f'<text x="40" y="{height - 2}">update {first:g}</text>'
        f'<text x="{width - 10}" y="{height - 2}" text-anchor="end">{last:g}</text></svg>'
    )
