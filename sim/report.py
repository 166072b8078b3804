"""report.html: one file with everything a reader needs, films included."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volar.sim.evaluation_folder import REPORT, write_whole
from volar.sim.report_charts import learning_curve, loss_curve, sensitivity_section
from volar.sim.report_details import films_section, holds_section, lost_section, reproduction_section
from volar.sim.report_made import made_section, time_line
from volar.sim.report_page import e, page, rate
from volar.sim.report_success import evaluated, figures, randomization_section, success_section

if TYPE_CHECKING:
    from volar.robots.contract import PolicyContract


def write_report(output: Path, results: Mapping[str, Any], contract: "PolicyContract | None" = None) -> Path:
    """Writes `output/report.html` from the results and the films beside it; returns its path."""
    title = f"Volar evaluation: {evaluated(results)}"
    parts = [
        f"<h1>{e(title)}</h1>",
        f'<p class="soft">policy <code>{e(results["policy"])}</code> · {e(_settings(results))}</p>',
        figures(results),
        success_section(results),
        randomization_section(results),
        films_section(output, results["videos"]),
        learning_curve(results["learning_curve"]),
        loss_curve(Path(results["policy"])),
        sensitivity_section(results["sensitivity"]),
        lost_section(output, results),
        holds_section(results["episodes"]),
        _made(results),
        reproduction_section(results, contract),
    ]
    return write_whole(output / REPORT, page(f"{title}: {rate(results['overall'])}", parts))


def _made(results: Mapping[str, Any]) -> str:
    """Nothing for results of before `made` was kept."""
    made = results.get("made", {})
    return made_section(made, more={"episodes took": time_line(made["time"])} if made else None)


def _settings(results: Mapping[str, Any]) -> str:
    """What the rates were measured under, in a line; usual settings are left out."""
    said = [f"robot {results['robot']}"]
    said += [f"model {results['asset']}"] if results.get("asset") else []
    said += [f"seed {results['seed']}", f"randomization {results['randomization']}"]
    said += [f"latency {results['latency_ms']:g} ms"]
    said += [f"at most {results['max_steps']} steps"] if results.get("max_steps") else []
    said += ["stopped sequentially"] if results.get("stop") == "sequential" else []
    return " · ".join(said)
