"""What volar-finetune refuses before it begins, and what a resumed run must have in common with the one before."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from volar.rl.finetune import FinetuneConfig, finetune
from volar.rl.finetuning_record import RECORD, settings, to_compare
from volar.robots.errors import UsageError, VolarError
from volar.vla.run_folder import check_output

POOLED: dict[str, object] = {"critic": "pooled"}
GRPO: dict[str, object] = {"algorithm": "grpo", "group": 2}
ALL: dict[str, object] = {"trains": "all"}


def config(output: Path, **other: object) -> FinetuneConfig:
    small: dict[str, object] = {"tasks": ("reach",), "episodes": 2, "updates": 1, "report_episodes": 0}
    return FinetuneConfig(policy=output / "policy", output=output / "out", **(small | other))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"gamma": 0.0}, "gamma"),
        ({"algorithm": "grpo", "group": 1}, "group=1"),
        ({"algorithm": "grpo", "group": 0}, "group=0"),
        ({"algorithm": "grpo", "episodes": 64, "group": 24}, "episodes=64 do not divide"),
        ({"reference_weight": -1.0}, "reference_weight"),
        ({"reference_weight": float("nan")}, "reference_weight"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"kernel_bins": float("nan")}, "kernel_bins must be finite"),
        ({"demonstrations": Path("demos"), "imitation_weight": 0.0}, "imitation_weight=0"),
        ({"report_episodes": 1, "report_randomizations": "none,ful"}, "ful"),
        ({"minutes": 3.0}, "one of the two"),
        ({"temperature": 0.0}, "temperature"),
        ({"reward": "spares"}, "sparse"),
        ({"reward_weight": 0.0}, "nothing to learn from"),
        ({"tasks": ("reach", "lift", "reach")}, "reach is there 2 times"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        config(tmp_path, **wrong)


@pytest.mark.parametrize(
    ("ignored", "needs", "beside"),
    [
        ({"group": 2}, "algorithm=grpo", {"algorithm": "grpo"}),
        ({"group": 0}, "algorithm=grpo", {}),
        (GRPO | {"critic": "pooled"}, "algorithm=ppo", {"algorithm": "ppo", "group": 8}),
        (GRPO | {"gae_lambda": 0.9}, "algorithm=ppo", {"algorithm": "ppo", "group": 8}),
        (GRPO | {"critic_updates": 2}, "algorithm=ppo", {"algorithm": "ppo", "group": 8}),
        ({"pointing_weight": 0.1}, "trains=all", ALL),
        ({"vision": "lora"}, "trains=all", ALL),
        (ALL | {"lora_rank": 4}, "vision=lora, connector=lora or language=lora", {"language": "lora"}),
        ({"imitation_weight": 0.2}, "demonstrations=", {"demonstrations": Path("demos")}),
        ({"precision": "bf16"}, "trains=all or demonstrations=", ALL),
        ({"precision": "bf16"}, "trains=all or demonstrations=", {"demonstrations": Path("demos")}),
        ({"kernel_bins": 0.0, "fade_updates": 9}, "kernel_bins above 0", {"kernel_bins": 1.0}),
        ({"report_randomizations": "none"}, "report_episodes above 0", {"report_episodes": 1}),
        ({"ray_address": "auto"}, "rollouts=ray", {"rollouts": "ray"}),
    ],
)
def test_what_would_be_ignored_is_refused(
    ignored: dict[str, object], needs: str, beside: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"acts only with {needs}; leave it away"):
        config(tmp_path, **ignored)
    if beside:
        assert config(tmp_path, **(ignored | beside))


def kept(settings_of_it: FinetuneConfig, without: str = "-") -> None:
    """The record of a run that has begun, or of one of before that kept no such settings."""
    settings_of_it.output.mkdir()
    found = {key: value for key, value in settings(settings_of_it).items() if without not in key}
    (settings_of_it.output / RECORD).write_text(json.dumps(found))


def in_yaml(folder: Path, text: str) -> dict[str, object]:
    path = folder / "own.yaml"
    path.write_text(f"include: [{text}]\n")
    return {"randomization": str(path)}


def in_dataset(folder: Path, text: str) -> dict[str, object]:
    path = folder / "demos" / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return {"demonstrations": folder / "demos"}


def in_classifier(folder: Path, text: str) -> dict[str, object]:
    path = folder / "judge" / "trunk" / "model.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return {"reward": "classifier", "classifier": folder / "judge"}


@pytest.mark.parametrize(
    ("write", "name"),
    [(in_yaml, "randomization"), (in_dataset, "demonstrations"), (in_classifier, "classifier")],
)
def test_other_content_under_the_same_path_is_no_resume(
    write: Callable[[Path, str], dict[str, object]], name: str, tmp_path: Path
) -> None:
    run = config(tmp_path, resume=True, **write(tmp_path, "visual"))
    kept(run)
    again = to_compare(run.output, settings(run))
    assert f"{name}_sha256" in again
    assert check_output(run.output, RECORD, "run", again, resume=True, overwrite=False)
    write(tmp_path, "dynamics")
    with pytest.raises(VolarError, match=rf"other settings \({name}_sha256: was [0-9a-f]{{12}}, is [0-9a-f]{{12}}\)"):
        finetune(run)


def test_a_run_of_before_goes_on(tmp_path: Path) -> None:
    """It kept no hashes, and nothing of a critic, which saw the state."""
    run = config(tmp_path, **in_yaml(tmp_path, "visual"), **in_dataset(tmp_path, "a"))
    kept(run, without="_sha256")
    assert check_output(run.output, RECORD, "run", to_compare(run.output, settings(run)), resume=True, overwrite=False)
    earlier = config(tmp_path / "earlier", critic="state")
    earlier.output.parent.mkdir()
    kept(earlier, without="critic")  # critic_updates too
    wanted = to_compare(earlier.output, settings(earlier))
    assert "critic" not in wanted
    with pytest.raises(VolarError, match="critic: was None, is pooled"):
        finetune(config(tmp_path / "earlier", critic="pooled", resume=True))
