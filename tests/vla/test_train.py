import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from volar.datasets.frame_cache import FrameCache
from volar.datasets.lerobot_format import load_contract
from volar.datasets.mixture_contract import MixtureRules
from volar.robots.errors import UsageError, VolarError
from volar.vla.checkpoint_policy import load_parts
from volar.vla.instruction_tokenizer import WORDS
from volar.vla.processes import choose_precision
from volar.vla.train import TrainConfig, train
from volar.vla.training_loop import learning_rate
from volar.vla.training_run import TrainingRun
from volar.vla.training_state import load_progress, publish

Settings = Callable[..., TrainConfig]


def weights(output: Path) -> dict[str, np.ndarray]:
    return load_file(output / "checkpoints" / "last" / "pretrained_model" / "model.safetensors")


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_killed_run_ends_with_the_same_bits(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(settings(output=tmp_path / "whole"))

    class Killed(Exception):
        pass

    step = TrainingRun.train_step

    def killed_at_five(self: TrainingRun, rate: float) -> object:
        if self.step == 5:
            raise Killed
        return step(self, rate)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "train_step", killed_at_five)
        with pytest.raises(Killed):
            train(settings(save_every_steps=3))
    train(settings(resume=True))  # from step 3: what came after it is done again
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_the_seed_decides_the_run(settings: Settings, tmp_path: Path) -> None:
    train(settings(steps=2, output=tmp_path / "a", seed=0))
    train(settings(steps=2, output=tmp_path / "b", seed=1))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_training_lowers_the_loss_on_what_it_sees(settings: Settings) -> None:
    training = TrainingRun.start(settings(batch_size=64, seed=3))
    losses = [training.train_step(2e-3).named() for _ in range(30)]
    assert losses[-1]["action"] < losses[0]["action"]
    assert losses[-1]["patch"] < losses[0]["patch"]


def test_a_resumed_run_must_be_the_same_run(settings: Settings) -> None:
    train(settings(steps=1))
    with pytest.raises(VolarError, match=r"learning_rate: was 0\.001, is 0\.5"):
        train(settings(resume=True, learning_rate=0.5))
    (settings().output / "train.json").write_text('{"seed": "0", "opti')
    with pytest.raises(VolarError, match=r"train\.json is broken .* overwrite=true"):
        train(settings(resume=True))


def test_resuming_where_nothing_is_begins_anew(settings: Settings, tmp_path: Path) -> None:
    """Absent or empty, so that a script that is started again may always say `resume=true`; never among other work."""
    plain = settings(steps=1, output=tmp_path / "plain")
    train(plain)
    for name in ("absent", "empty"):
        output = tmp_path / name
        if name == "empty":
            output.mkdir()
        train(replace(plain, output=output, resume=True))
        assert equal(weights(output), weights(plain.output))
    shutil.rmtree(output / "checkpoints")  # killed before the first
    train(replace(plain, output=output, resume=True))
    assert equal(weights(output), weights(plain.output))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_granny.txt").write_text("dear granny")
    with pytest.raises(VolarError, match="holds something else than a training run"):
        train(replace(plain, output=tmp_path / "letters", resume=True))
    assert (tmp_path / "letters" / "to_granny.txt").is_file()


def test_a_run_from_before_a_setting_existed_goes_on_without_it(settings: Settings, tmp_path: Path) -> None:
    train(settings(steps=1))
    record = next(tmp_path.rglob("train.json"))
    before = json.loads(record.read_text())
    assert before.pop("expert_width") == "None"
    record.write_text(json.dumps(before))
    with pytest.raises(VolarError, match="expert_width: was None, is 24"):
        train(settings(resume=True, decoder="flow", expert_width=24))
    train(settings(steps=2, resume=True))
    assert load_progress(record.parent / "checkpoints/last/training_state")["step"] == 2


def test_a_run_is_not_resumed_on_data_that_has_changed(settings: Settings, dataset: Path) -> None:
    train(settings(steps=1))
    contract = load_contract(dataset)
    replace(contract, instruction_template="please {instruction}").save(dataset / "meta" / "volar_contract.json")
    with pytest.raises(VolarError, match=r"have changed since .*dataset: 64 frames"):
        train(settings(resume=True))


def test_half_a_checkpoint_is_not_resumed(settings: Settings) -> None:
    train(settings(steps=1))
    state = settings().output / "checkpoints" / "last" / "training_state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    with pytest.raises(VolarError, match="training_state cannot be resumed from"):
        train(settings(resume=True))


def test_what_is_in_the_output_is_kept(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(VolarError, match="holds something else"):
            train(settings(overwrite=overwrite))
        with pytest.raises(VolarError, match=r"thesis\.txt is a file; give a folder"):
            train(settings(output=tmp_path / "run" / "thesis.txt", overwrite=overwrite))
    assert (tmp_path / "run" / "thesis.txt").read_text() == "precious"
    train(settings(steps=1, output=tmp_path / "mine"))
    with pytest.raises(VolarError, match="overwrite=true replaces it"):
        train(settings(output=tmp_path / "mine"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(VolarError, match="not a LeRobotDataset"):
        train(settings(output=tmp_path / "mine", dataset=tmp_path / "nothing", overwrite=True))
    assert weights(tmp_path / "mine")  # bad input loses nothing


@pytest.mark.parametrize("name", ["dataset", "scenes", "questions", "init"])
def test_a_path_with_nothing_is_named_before_torch_starts(name: str, tmp_path: Path) -> None:
    given = {"output": tmp_path / "run", "dataset": tmp_path, name: tmp_path / "nowhere"}
    words = ["steps=1", *(f"{key}={value}" for key, value in given.items())]
    code = (
        f"import sys; from volar.vla.train import main; sys.argv[1:] = {words}; "
        "assert main() == 1; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{name}={tmp_path}/nowhere: there is no such folder" in done.stderr


def test_a_diverged_loss_ends_with_a_usable_checkpoint(settings: Settings) -> None:
    with pytest.raises(VolarError, match="learning_rate below"):
        train(settings(learning_rate=1e18, steps=50, save_every_steps=1, warmup_steps=1))
    assert all(np.isfinite(value).all() for value in weights(settings().output).values())


def test_a_gradient_that_is_no_number_changes_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss may be finite where its gradient is not; the checkpoint from before trains on."""
    step = TrainingRun.train_step

    def with_a_broken_gradient(self: TrainingRun, rate: float) -> object:
        if self.step == 2:
            self.bare.point_queries.register_hook(lambda gradient: gradient * torch.inf)
        return step(self, rate)

    monkeypatch.setattr(TrainingRun, "train_step", with_a_broken_gradient)
    with pytest.raises(VolarError, match="gradient became nan at step 3; start again with a learning_rate below"):
        train(settings(output=tmp_path / "early"))
    with pytest.raises(VolarError, match=r"the last checkpoint is from before: train with init=.*, another output"):
        train(settings(save_every_steps=1))
    assert (tmp_path / "run" / "checkpoints" / "last").resolve().name == "000002"
    monkeypatch.undo()
    with pytest.raises(UsageError, match="which this run reads"):
        settings(init=tmp_path / "run", overwrite=True)
    train(settings(init=tmp_path / "run", steps=2, output=tmp_path / "on"))
    assert np.isfinite(json.loads((tmp_path / "on" / "metrics.jsonl").read_text())["total"])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"ema_decay": -1.0}, "ema_decay"),
        ({"mix": MixtureRules(statistics="own")}, r"mix\.statistics"),
        ({"evaluate_every_steps": 5, "stage": "grounding"}, "stage=cloning"),
        ({"scenes_fraction": 0.3}, "scenes_fraction is for scenes="),
        ({"questions_fraction": 0.3}, "questions_fraction is for questions="),
        ({"evaluate_tasks": ("reach",)}, "evaluate_tasks is for evaluate_every_steps="),
        ({"evaluate_episodes": 5}, "evaluate_episodes is for evaluate_every_steps="),
        ({"validate_every_steps": 5}, "validate_every_steps is for validation= or questions="),
        ({"init": Path("run"), "backbone": "smol", "backbone_dtype": "bfloat16"}, "backbone_dtype"),
        ({"init": Path("run"), "backbone": "smol", "decoder": "autoregressive", "action_ids": "added"}, "action_ids"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(wrong: dict[str, object], says: str, settings: Settings) -> None:
    with pytest.raises(UsageError, match=says):
        settings(**wrong)


@pytest.mark.parametrize("asked", ["bf16", "fp16"])
def test_what_a_launcher_was_told_is_not_ignored(
    asked: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `accelerate launch --mixed_precision` leaves it; and shares of weights need others to have them."""
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        for precision in ("fp32", "auto"):
            with pytest.raises(UsageError, match=f"--mixed_precision {asked}, the run precision={precision}"):
                train(settings(precision=precision))
    with pytest.raises(UsageError, match=r"parallel=fsdp.*there is one: start with torchrun"):
        train(settings(parallel="fsdp"))
    assert not settings().output.exists()


def test_precision_on_a_gpu_is_what_it_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Emulated bfloat16 does not count, and what is computed on the CPU beside it is timed there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, chosen in ((True, "bf16"), (False, "no")):
        supported = {True: True, False: has}  # by `including_emulation`
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, s=supported: s[including_emulation]
        )
        assert choose_precision("auto") == chosen
        assert choose_precision("fp32") == "no"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", None)
    assert choose_precision("auto", "cpu") in ("no", "bf16")


def test_checkpoints_of_a_future_that_did_not_happen_go(tmp_path: Path) -> None:
    for step in (50, 100, 200):
        (tmp_path / f"{step:06d}").mkdir()
    (tmp_path / "last").symlink_to("000100")  # 200 was complete when the link was to move
    (tmp_path / "writing").mkdir()
    publish(tmp_path, 150, tmp_path / "writing", keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000150", "last"]
    assert (tmp_path / "last").resolve().name == "000150"


def test_a_checkpoint_is_on_the_disk_before_older_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files, the folders that name them, and `last`."""
    (tmp_path / "000001").mkdir()
    (tmp_path / "last").symlink_to("000001")
    (tmp_path / "writing" / "policy").mkdir(parents=True)
    (tmp_path / "writing" / "policy" / "weights").write_bytes(b"1")
    sync, synced = os.fsync, dict[Path, tuple[str, bool]]()

    def noted(descriptor: int) -> None:
        sync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced[path.relative_to(tmp_path)] = (tmp_path / "last").readlink().name, (tmp_path / "000001").exists()

    monkeypatch.setattr(os, "fsync", noted)
    publish(tmp_path, 2, tmp_path / "writing", keep=1)
    inside = [Path("writing"), Path("writing/policy"), Path("writing/policy/weights")]
    assert synced == dict.fromkeys(inside, ("000001", True)) | {Path(): ("000002", True)}
    assert not (tmp_path / "000001").exists()


def test_cloning_needs_action_statistics(settings: Settings, dataset: Path) -> None:
    contract = load_contract(dataset)
    scenes = {"observation.state": contract.statistics["observation.state"]}
    replace(contract, statistics=scenes).save(dataset / "meta" / "volar_contract.json")
    with pytest.raises(VolarError, match="cloning needs demonstrations"):
        train(settings())
    train(settings(stage="grounding", steps=1))


def test_scenes_of_another_robot_are_refused(settings: Settings, dataset: Path, tmp_path: Path) -> None:
    cache, contract = FrameCache.open(dataset), load_contract(dataset)
    cache.save(tmp_path / "scenes", replace(contract, state_names=tuple(reversed(contract.state_names))))
    with pytest.raises(VolarError, match=r"does not fit the dataset: state_names"):
        train(settings(scenes=tmp_path / "scenes"))


def test_cloning_starts_from_grounding(settings: Settings, dataset: Path, tmp_path: Path) -> None:
    grounded = settings(stage="grounding", steps=2, output=tmp_path / "grounding")
    train(grounded)
    train(settings(init=tmp_path / "grounding", scenes=dataset, steps=1))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == 1


def test_new_networks_see_points_from_the_hand(settings: Settings, dataset: Path, tmp_path: Path) -> None:
    def points(**changes: object) -> str:
        train(settings(steps=1, output=tmp_path / "out", overwrite=True, **changes))
        return load_parts(tmp_path / "out/checkpoints/last/pretrained_model")[0].config.points

    assert points() == "hand"
    train(settings(stage="grounding", points="base", steps=1, output=tmp_path / "grounding"))
    assert points(init=tmp_path / "grounding") == "base"
    assert points(init=tmp_path / "grounding", points="hand") == "hand"
    with pytest.raises(VolarError, match="has finds_hand=True, not False"):
        points(init=tmp_path / "grounding", finds_hand=False)
    cache, contract = FrameCache.open(dataset), load_contract(dataset)
    joints = tuple(f"joint_{i}" for i in range(len(contract.state_names)))
    cache.save(tmp_path / "joints", replace(contract, state_names=joints))
    assert points(dataset=tmp_path / "joints") == "base"
    with pytest.raises(VolarError, match="points=hand needs ee_x, ee_y, ee_z"):
        points(dataset=tmp_path / "joints", points="hand")


def test_the_hand_is_looked_for_where_data_say_where_it_is(settings: Settings, dataset: Path, tmp_path: Path) -> None:
    def finds_hand(**changes: object) -> bool:
        train(settings(steps=1, output=tmp_path / "out", overwrite=True, **changes))
        return load_parts(tmp_path / "out/checkpoints/last/pretrained_model")[0].config.finds_hand

    cache, contract = FrameCache.open(dataset), load_contract(dataset)
    named = cache.points.copy()
    named[:, 2] = np.nan
    replace(cache, points=named).save(tmp_path / "named", contract)
    assert finds_hand()
    assert not finds_hand(dataset=tmp_path / "named")
    assert finds_hand(dataset=tmp_path / "named", scenes=dataset)
    assert finds_hand(dataset=tmp_path / "named", finds_hand=True)
    own = {"dataset": tmp_path, "mixture": "named:1.0", "mix": MixtureRules(statistics="own")}
    assert not finds_hand(**own)
    with pytest.raises(UsageError, match=r"finds_hand=true reads positions .* mix\.statistics=own"):
        finds_hand(**own, finds_hand=True)
    train(settings(stage="grounding", steps=1, output=tmp_path / "grounding"))
    with pytest.raises(UsageError, match=r"grounding has finds_hand=true, .* mix\.statistics=own"):
        finds_hand(**own, init=tmp_path / "grounding")


def test_other_action_tokens_keep_the_words(settings: Settings, dataset: Path, tmp_path: Path) -> None:
    """Grounding knows bins only; FAST's tokens, and the end of a chunk, begin at random beside the words it learned."""
    train(settings(stage="grounding", steps=2, output=tmp_path / "grounding"))
    train(settings(init=tmp_path / "grounding", decoder="autoregressive", tokenizer="fast", steps=1))
    last = Path("checkpoints") / "last" / "pretrained_model"
    grounded, cloned = (load_parts(tmp_path / run / last)[0] for run in ("grounding", "run"))
    assert (cloned.config.tokenizer, cloned.backbone.action_end) == ("fast", WORDS + cloned.config.action_tokens + 1)
    words = [model.backbone.embed_words(torch.arange(WORDS)) for model in (grounded, cloned)]
    assert 0 < (words[0] - words[1]).abs().max() < 0.01
    with pytest.raises(VolarError, match="has tokenizer=fast, not bins"):
        train(settings(init=tmp_path / "run", tokenizer="bins", output=tmp_path / "again"))
    with pytest.raises(UsageError, match=r"points is for decoder=parallel; .* has decoder=autoregressive"):
        train(settings(init=tmp_path / "run", points="hand", output=tmp_path / "again"))


def test_settings_that_make_no_sense(settings: Settings) -> None:
    wrong: list[dict[str, object]] = [{"minutes": 1.0}, {"steps": None}, {"steps": 0}, {"keep": 0}]
    wrong += [{"points": "hand", "decoder": "flow"}]
    wrong += [{name: -1} for name in ("weight_decay", "threads", "seed", "save_every_s", "flow_steps")]
    numbers = ("weight_decay", "learning_rate", "save_every_s", "ema_decay", "validation", "scenes_fraction")
    wrong += [{name: value} for name in numbers for value in (math.nan, math.inf)]
    wrong += [{"steps": None, "minutes": value} for value in (math.nan, math.inf)]
    wrong += [{"scenes_fraction": 0.0}, {"execute_steps": 9, "chunk_length": 8}, {"resume": True, "overwrite": True}]
    for changes in (*wrong, {"output": settings().dataset.parent}):
        with pytest.raises(UsageError):
            settings(**changes)


def test_the_schedule_rises_and_falls(settings: Settings) -> None:
    config = settings(warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(config, step, step / 100) for step in range(101)]
    assert max(rates) <= 1.0
    assert rates[0] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.02)
    assert all(a >= b for a, b in pairwise(rates[10:]))
