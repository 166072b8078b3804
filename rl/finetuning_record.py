"""What makes a fine-tuning run this one and no other: its settings, and the content of what they name.

A resumed run goes on exactly or not at all: a dataset that was collected anew, another classifier or an edited
randomization under the same path would make another run of it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from volar.rl.finetune import FinetuneConfig
from volar.rl.success_network import FACTS, HEAD, TRUNK
from volar.sim.randomization import PRESETS

RECORD = "finetune.json"  # in the output
# How long a run is and how it is watched may change when it resumes; everything else makes another run.
_FREE = {"minutes", "updates", "keep", "save_every", "workers", "rollouts", "ray_address", "output", "resume"}
_FREE |= {"overwrite", "report_episodes", "report_randomizations", "max_kl"}
_CONTENT = "_sha256"


def settings(config: FinetuneConfig) -> dict[str, str]:
    """Settings as text, and `NAME_sha256` of what lies at the path of one. Of `policy` none: `cloned/` keeps it."""
    found = {key: str(value) for key, value in sorted(asdict(config).items()) if key not in _FREE}
    if config.randomization not in PRESETS:
        path = Path(config.randomization)
        found[f"randomization{_CONTENT}"] = _sha256(path.parent, [path])
    if (data := config.demonstrations) is not None:
        # The statistics of each episode, which meta/ holds, follow from its frames: no need to read those.
        found[f"demonstrations{_CONTENT}"] = _sha256(data, data.glob("meta/**/*"))
    if (judge := config.classifier) is not None:
        found[f"classifier{_CONTENT}"] = _sha256(judge, [judge / FACTS, judge / HEAD, *judge.glob(f"{TRUNK}/**/*")])
    return found


def to_compare(output: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    """Those of the `settings` that the run in `output` can be held to.

    One of before kept no hashes, and its critic saw the state. Where there is no run, all of them.
    """
    try:
        kept = json.loads((output / RECORD).read_text())
    except (OSError, ValueError):  # `check_output` says what is wrong
        return dict(wanted)
    return {
        key: value
        for key, value in wanted.items()
        if key in kept or not (key.endswith(_CONTENT) or (key, value) == ("critic", "state"))
    }


def _sha256(root: Path, paths: Iterable[Path]) -> str:
    """Over the names below `root` and the bytes of those that are files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]
