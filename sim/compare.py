"""volar-evaluate compare: which of two policies is better, by how much, and how sure that is.

Takes the output folders of evaluations with the same episodes (the same tasks, episodes, seed, robot, randomization,
max_steps and latency_ms) and compares each with the first. Leaves compare.json and compare.html.

The test is McNemar's, exact, two-sided, at 5 %; the interval of the difference Newcombe's for paired rates. Several
policies, or the tasks of a suite, are corrected for their number (Holm).
"""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from volar.robots.command_line import run
from volar.robots.errors import UsageError, VolarError

EXAMPLES = (
    "volar-evaluate compare runs/evaluation-a runs/evaluation-b",
    "volar-evaluate compare runs/base runs/longer runs/larger output=runs/comparison",
)
_JSON, _HTML = "compare.json", "compare.html"


@dataclass(frozen=True)
class CompareConfig:
    """Settings of `volar-evaluate compare`."""

    evaluations: tuple[Path, ...] = field(
        metadata={"help": "output folders of volar-evaluate, or their results.json; each is compared with the first"}
    )
    output: Path = field(default=Path("runs/comparison"), metadata={"help": f"folder for {_JSON} and {_HTML}"})
    overwrite: bool = field(default=False, metadata={"help": "replace a comparison in output"})


def compare_evaluations(config: CompareConfig) -> dict[str, Any]:
    """Writes the comparison, which it also returns: `evaluations` (name, policy, hash) and `comparisons`.

    Raises `UsageError` for fewer than two evaluations, `VolarError` where one cannot be read, where their episodes
    are not the same (naming what differs), or where output is taken.
    """
    from volar.sim.compare_report import compare_page, print_comparison
    from volar.sim.comparison import compare, names_of, require_paired, versions_note
    from volar.sim.evaluation_folder import read_results, write_whole

    if len(config.evaluations) < 2:
        raise UsageError("compare needs two evaluations or more: volar-evaluate compare A B")
    found = [read_results(path) for path in config.evaluations]
    names = names_of(config.evaluations)
    for name, results in zip(names[1:], found[1:], strict=True):
        require_paired(found[0], results, (names[0], name))
    _require_free(config)
    comparisons = [
        {"a": names[0], "b": name, "note": versions_note(found[0], results, (names[0], name)), **judged}
        for name, results, judged in zip(names[1:], found[1:], compare(found[0], found[1:]), strict=True)
    ]
    result = {
        "evaluations": [
            {"name": name, "path": str(path), **{key: r[key] for key in ("policy", "policy_sha256")}}
            for name, path, r in zip(names, config.evaluations, found, strict=True)
        ],
        **{key: found[0][key] for key in ("suite", "seed", "robot", "randomization", "latency_ms")},
        "comparisons": comparisons,
    }
    config.output.mkdir(parents=True, exist_ok=True)
    write_whole(config.output / _JSON, json.dumps(result, indent=1, allow_nan=False) + "\n")
    page = write_whole(config.output / _HTML, compare_page(result))
    print_comparison(result)
    print(f"report: {page}")
    return result


def _require_free(config: CompareConfig) -> None:
    if config.output.exists() and not config.output.is_dir():
        raise VolarError(f"output {config.output} is a file; give a folder")
    if (config.output / _JSON).exists() and not config.overwrite:
        raise VolarError(f"output {config.output} holds a comparison; give another output=, or overwrite=true")


def _main(config: CompareConfig) -> None:
    compare_evaluations(config)


def main(argv: list[str]) -> int:
    """Bare words are evaluations, however many; the rest is key=value as for every verb."""
    settings = tuple(f"{item.name}=" for item in fields(CompareConfig))
    bare = [word for word in argv if not word.startswith(("-", *settings))]
    quoted = ["'" + word.replace("\\", "\\\\").replace("'", "\\'") + "'" for word in bare]
    words = [word for word in argv if word not in bare] + ([f"evaluations=[{','.join(quoted)}]"] if bare else [])
    return run("volar-evaluate compare", CompareConfig, _main, doc=__doc__, examples=EXAMPLES, argv=words)
