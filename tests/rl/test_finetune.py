"""volar-finetune as its user meets it: what it leaves, how it resumes, what it refuses."""

import json
import os
import re
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from volar.rl.episodes import Job, Setting
from volar.rl.finetune import FinetuneConfig, finetune
from volar.rl.finetuning_run import FinetuningRun, save_cloned
from volar.rl.report import write_finetuning_report
from volar.robots.command_line import parse
from volar.robots.contract import ContractError, PolicyContract
from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.policies import load_policy
from volar.vla.adapters import PARTS, part_of
from volar.vla.backbone import VlmConfig
from volar.vla.checkpoint_policy import load_parts
from volar.vla.modeling_volar import VolarModel
from volar.vla.processor_volar import save_policy
from volar.vla.training_state import load_progress


def config(policy: Path, output: Path, updates: int = 2, **other: object) -> FinetuneConfig:
    small = {"tasks": ("reach",), "episodes": 2, "workers": 1, "evaluation_episodes": 1, "evaluate_every": 1}
    small |= {"report_episodes": 0, "save_every": 1, "critic_updates": 1, "reward": "dense"}
    return FinetuneConfig(policy=policy, output=output, updates=updates, **(small | other))  # type: ignore[arg-type]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return dict(load_parts(output / "checkpoints" / "last" / "pretrained_model")[0].named_parameters())


def moments(output: Path) -> bytes:
    return (output / "checkpoints" / "last" / "training_state" / "state.safetensors").read_bytes()


@pytest.fixture(scope="module")
def run(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three updates without an interruption, with a report."""
    output: Path = tmp_path_factory.mktemp("run") / "finetuned"
    finetune(config(policy_folder, output, 3, report_episodes=2, report_randomizations="none"))
    return output


def test_it_leaves_what_volar_train_leaves(run: Path) -> None:
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == ["000002", "000003", "last"]
    assert (run / "checkpoints" / "last" / "training_state" / "progress.json").is_file()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in lines] == [0, 1, 2, 3]
    assert {"success", "kl_step", "clip_fraction", "explained_variance", "env_steps_per_s", "held_out"} <= lines[
        -1
    ].keys()
    assert list((run / "tensorboard").iterdir())
    assert load_policy(run / "best").contract == load_policy(run).contract


def test_the_report_says_before_and_after(run: Path) -> None:
    found = json.loads((run / "finetuning.json").read_text())
    assert found["presets"]["none"]["before"]["episodes"] == 2
    page = (run / "report.html").read_text()
    assert "McNemar" in page
    assert "success in held-out scenes" in page


def test_the_report_says_how_it_was_made(run: Path, policy_folder: Path) -> None:
    made = json.loads((run / "finetuning.json").read_text())["made"]
    words = shlex.split(made["command"])
    assert words[0] == "volar-finetune"
    wanted = config(policy_folder, run, 3, report_episodes=2, report_randomizations="none")
    assert parse(FinetuneConfig, words[1:]) == wanted
    page = (run / "report.html").read_text()
    for key, value, default in (("episodes", "2", "64"), ("reward", "dense", "sparse"), ("tasks", "reach", "[]")):
        cells = (key, f"<code>{value}</code>", f"<code>{default}</code>")
        assert re.search("<td.*?>".join(f"{re.escape(cell)}</td>" for cell in cells), page)
    assert "gamma" not in page  # its default
    for text in (made["date"], f"mujoco {made['versions']['mujoco']}", made["machine"]["cpu"], "updates took"):
        assert text in page
    links = re.findall(r'href="(.*?)"', page)
    assert links == ["before/report.html", "after/report.html"]
    assert all((run / link).is_file() for link in links)


def test_the_report_of_a_run_that_went_on_is_about_the_new_best(run: Path, policy_folder: Path, tmp_path: Path) -> None:
    output = shutil.copytree(run, tmp_path / "longer")
    shutil.rmtree(output / "best")
    shutil.copytree(output / "checkpoints" / "last" / "pretrained_model", output / "best")
    longer = config(policy_folder, output, 3, report_episodes=2, report_randomizations="none", resume=True)
    write_finetuning_report(longer, 1, "done")

    def policy(evaluation: Path) -> str:
        return str(json.loads((evaluation / "evaluation.json").read_text())["policy_sha256"])

    assert policy(output / "before") == policy(run / "before")
    assert policy(output / "after") != policy(run / "after")
    assert json.loads((output / "finetuning.json").read_text())["presets"]["none"]["after"]["episodes"] == 2


def test_only_the_head_has_changed(run: Path, policy_folder: Path) -> None:
    before, after = dict(load_parts(policy_folder)[0].named_parameters()), weights(run)
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"action_head"}


def test_a_resumed_run_is_the_uninterrupted_one(run: Path, policy_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "finetuned"
    finetune(config(policy_folder, output, 1))
    with (output / "metrics.jsonl").open("a") as file:
        file.write('{"update": 2, "success": 0.5}\n{"upda')  # of an update that was done and not saved
    finetune(config(policy_folder, output, 3, resume=True))
    assert all(torch.equal(a, weights(run)[name]) for name, a in weights(output).items())
    assert moments(output) == moments(run)
    assert updates_of(output) == [0, 1, 2, 3]


def updates_of(output: Path) -> list[int]:
    return [json.loads(line)["update"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_is_told_to_stop_goes_on_exactly(
    run: Path, policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an update: it is finished and saved, its evaluation is left, and made up for."""
    output, update = tmp_path / "finetuned", FinetuningRun.update

    def told_in_the_second(self: FinetuningRun, *args: object) -> dict[str, float]:
        if self.updates == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(FinetuningRun, "update", told_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            finetune(config(policy_folder, output, 3, save_every=100))
    state = output / "checkpoints" / "last" / "training_state"
    assert [load_progress(state)[key] for key in ("updates", "evaluated")] == [2, 1]
    finetune(config(policy_folder, output, 3, save_every=100, resume=True))
    assert all(torch.equal(a, weights(run)[name]) for name, a in weights(output).items())
    assert updates_of(output) == [0, 1, 2, 2, 3]
    assert [load_progress(state)[key] for key in ("updates", "evaluated")] == [3, 3]
    finetune(config(policy_folder, output, 3, resume=True))  # nothing is left to do
    assert updates_of(output) == [0, 1, 2, 2, 3]


def test_grpo_resumes(policy_folder: Path, tmp_path: Path) -> None:
    some: dict[str, object] = {"algorithm": "grpo", "group": 2, "episodes": 4}
    finetune(config(policy_folder, tmp_path / "whole", 2, **some))
    finetune(config(policy_folder, tmp_path / "parts", 1, resume=True, **some))  # nothing yet: it begins
    finetune(config(policy_folder, tmp_path / "parts", 2, resume=True, **some))
    assert moments(tmp_path / "parts") == moments(tmp_path / "whole")


def test_an_evaluation_that_an_interruption_left_is_due(run: Path, policy_folder: Path) -> None:
    settings = config(policy_folder, run, 3, evaluate_every=2)
    training = FinetuningRun(settings, "no")
    assert training.evaluation_due
    training.evaluated, training.updates = 0, 1
    assert not training.evaluation_due
    training.updates = 2
    assert training.evaluation_due
    training.evaluated, training.updates = 2, 3
    assert training.evaluation_due  # the last


def test_what_is_tried_out_halves_while_it_learns(run: Path, policy_folder: Path) -> None:
    run_config = config(policy_folder, run, 3, fade_updates=2)
    training = FinetuningRun(run_config, "no")
    widths = set()
    for training.updates in range(7):
        jobs = training.jobs()
        widths |= {(training.updates, job.width) for job in jobs}
    assert sorted(widths) == [(n, pytest.approx(max(0.25, 0.5 ** (n / 2)))) for n in range(7)]
    assert all(job.width == 1.0 for job in FinetuningRun(replace(run_config, fade_updates=0), "no").jobs())


def test_another_decoder_is_refused(policy_folder: Path, tmp_path: Path) -> None:
    model, contract, tokenizer = load_parts(policy_folder)
    flow = VolarModel(replace(model.config, decoder="flow", expert_width=16), contract)
    save_policy(tmp_path / "flow", flow, contract, tokenizer)
    with pytest.raises(VolarError, match="decoder=flow; volar-finetune moves the tokens of decoder=parallel"):
        finetune(config(tmp_path / "flow", tmp_path / "out", 1))


def test_everything_can_learn(policy_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "all"
    finetune(config(policy_folder, output, 1, trains="all", pointing_weight=0.1, algorithm="grpo", group=2))
    before, after = dict(load_parts(policy_folder)[0].named_parameters()), weights(output)
    assert any(not torch.equal(before[name], after[name]) for name in after if name.startswith("backbone"))


def test_parts_learn_as_they_are_told(policy_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "parts"
    some: dict[str, object] = {
        "trains": "all",
        "pointing_weight": 0.1,
        "vision": "frozen",
        "language": "lora",
        "lora_rank": 2,
        "critic": "pooled",
    }
    finetune(config(policy_folder, output, 2, **some))
    model = load_parts(output / "cloned")[0]
    before, after = dict(model.named_parameters()), weights(output)
    changed: dict[str, set[str]] = {part: set() for part in PARTS}
    for name in after:
        if name.startswith("backbone.model.") and not torch.equal(before[name], after[name]):
            inner = name.removeprefix("backbone.model.")
            changed[part_of(model.backbone, inner)].add(inner)
    assert not changed["vision"]
    assert changed["connector"]
    assert changed["language"]
    assert all(".lora_" in name for name in changed["language"])
    assert load_policy(output / "best").contract.sha256 == load_policy(policy_folder).contract.sha256


def test_frozen_vision_looks_at_an_image_once(policy_folder: Path, tmp_path: Path) -> None:
    some: dict[str, object] = {"trains": "all", "vision": "frozen", "connector": "frozen", "pointing_weight": 0.1}
    run_config = config(policy_folder, tmp_path / "out", 2, **some)
    finetune(run_config)
    training = FinetuningRun(run_config, "no")
    with training.rollouts(1) as rollouts:
        (found,) = rollouts.run(training.jobs()[:1])
    assert set(found.inputs) == {"front.0", "wrist.0", "state", "input_ids", "privileged"}
    before, after = dict(load_parts(policy_folder)[0].named_parameters()), weights(tmp_path / "out")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert any("language_model" in name for name in changed)
    assert not any("vision_tower" in name or "projector" in name for name in changed)


def test_a_resumed_run_keeps_its_precision(policy_folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    some: dict[str, object] = {"trains": "all", "precision": "bf16", "language": "lora"}
    finetune(config(policy_folder, whole, 3, **some))
    finetune(config(policy_folder, parts, 1, **some))
    finetune(config(policy_folder, parts, 3, resume=True, **some))
    assert all(torch.equal(a, weights(whole)[name]) for name, a in weights(parts).items())
    assert moments(parts) == moments(whole)


def test_a_policy_that_does_not_fit_is_refused_with_the_fields(policy_folder: Path, tmp_path: Path) -> None:
    model, contract, tokenizer = load_parts(policy_folder)
    other: PolicyContract = replace(contract, robot="ur5e", state_units=("inch", *contract.state_units[1:]))
    save_policy(tmp_path / "misfit", model, other, tokenizer)
    with pytest.raises(ContractError, match=r"robot: policy wants ur5e, found fr3.*state_units: .*inch"):
        finetune(config(tmp_path / "misfit", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_weights_that_are_too_coarse_are_not_trained(policy_folder: Path, tmp_path: Path) -> None:
    """As volar-train refuses them; but for low-rank updates, and those of a policy are merged to what it did."""
    plain, contract, tokenizer = load_parts(policy_folder)
    architecture = json.loads(plain.backbone.model.config.to_json_string(use_diff=False))
    vlm = VlmConfig("llava", architecture, plain.config.backbone.image_size, dtype="bfloat16")
    kept = {"vision": "frozen", "connector": "frozen"}
    runs = {}
    for language in ("frozen", "lora"):
        model = VolarModel(replace(plain.config, backbone=vlm, language=language, **kept), contract)  # type: ignore[arg-type]
        save_policy(tmp_path / language, model, contract, tokenizer)
        runs[language] = config(tmp_path / language, tmp_path / f"{language}-out", trains="all", **kept)
    with pytest.raises(UsageError, match=r"frozen has .*bfloat16, which loses the small steps of language=full"):
        save_cloned(runs["frozen"])
    save_cloned(replace(runs["frozen"], language="lora"))
    save_cloned(config(tmp_path / "frozen", tmp_path / "head"))  # trains none of them
    save_cloned(runs["lora"])
    assert load_parts(tmp_path / "lora-out" / "cloned")[0].backbone.dtype == torch.float32


def test_outputs_are_not_overwritten_by_accident(run: Path, policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(VolarError, match="resume=true continues it"):
        finetune(config(policy_folder, run))
    with pytest.raises(VolarError, match="seed: was 0, is 5"):
        finetune(config(policy_folder, run, seed=5, resume=True))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_granny.txt").write_text("dear granny")
    with pytest.raises(VolarError, match="something else"):
        finetune(config(policy_folder, tmp_path / "letters", overwrite=True))
    own = tmp_path / "own"  # a run whose own best policy is to be replaced by what starts from it
    shutil.copytree(run, own)
    with pytest.raises(VolarError, match="give another output"):
        finetune(config(own / "best", own, overwrite=True))
    assert (tmp_path / "letters" / "to_granny.txt").is_file()


def test_a_task_that_does_not_exist_is_named(policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="lift"):
        finetune(config(policy_folder, tmp_path / "out", tasks=("lfit",)))


def test_it_stops_when_it_collapses(run: Path, policy_folder: Path, tmp_path: Path) -> None:
    """And a resumed one stays stopped, until a larger max_kl is given."""
    output = shutil.copytree(run, tmp_path / "far", symlinks=True)
    settings = config(policy_folder, output, 3, max_kl=1.0, resume=True)
    training = FinetuningRun.start(settings)
    assert training.stopped == ""
    training.divergence = 1.5
    assert "max_kl" in training.stopped
    training.updates = 4
    training.save()
    assert "max_kl" in FinetuningRun.start(settings).stopped
    assert FinetuningRun.start(replace(settings, max_kl=2.0)).stopped == ""
    training.divergence = 0.5
    with training.rollouts(1) as rollouts:
        training.best_success, training.collapsed = 0.9, 1
        training.evaluate(rollouts)  # random weights: 0 %
        assert training.stopped == "stopped: held-out success fell from 90% to 0%"
        training.best_success = 0.2
        training.evaluate(rollouts)
        assert training.stopped == ""


def test_scenes_are_never_met_twice(run: Path, policy_folder: Path) -> None:
    training = FinetuningRun(config(policy_folder, run), "no")
    first = {job.seed for job in training.jobs()}
    training.updates = 1
    second = {job.seed for job in training.jobs()}
    held_out = {job.seed for job in training.held_out()}
    assert len(first | second | held_out) == 2 + 2 + 1
    assert min(first | second | held_out) > 2**40  # above those of evaluations and demonstrations
    assert isinstance(training.setting, Setting)


@pytest.mark.parametrize("failing", [1, 2])
def test_episodes_that_cannot_be_run_are_told_of_once(
    failing: int,
    policy_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run goes on without them, and ends where no episode can be run."""
    scenes = FinetuningRun.jobs
    monkeypatch.setattr(
        FinetuningRun, "jobs", lambda training: [Job("reach", -1)] * failing + scenes(training)[failing:]
    )
    settings = config(policy_folder, tmp_path / "run", evaluate_every=9)
    if failing == 2:
        with pytest.raises(VolarError, match=r"after update 0, 2 of 2 episodes could not be run: ValueError"):
            finetune(settings)
        return
    finetune(settings)
    assert capsys.readouterr().out.count("1 of 2 episodes could not be run: ValueError") == 1
