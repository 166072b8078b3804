"""A step is the same step, in one piece or several, in one process or two, whole weights or shares of them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from volar.robots.errors import UsageError, VolarError
from volar.vla.checkpoint_policy import load_parts
from volar.vla.processes import Processes
from volar.vla.train import TrainConfig, train
from volar.vla.training_data import answer_id, places
from volar.vla.training_run import TrainingRun

from .tiny_vlms import tiny_folder

Settings = Callable[..., TrainConfig]
RATE = 1e-3


def moments(training: TrainingRun) -> dict[str, np.ndarray]:
    """First moments of the gradients: after one step a tenth of them, clipped."""
    names = {parameter: name for name, parameter in training.bare.named_parameters()}
    return {names[p]: state["exp_avg"].numpy() for p, state in training.optimizer.state.items()}


def read(output: Path) -> tuple[dict[str, np.ndarray], ...]:
    """Of the last checkpoint: weights, first and second moments, and the policy, which is the averaged weights."""
    last = output / "checkpoints" / "last"
    state = load_file(last / "training_state" / "state.safetensors")
    parts = ("model.", "exp_avg.", "exp_avg_sq.")
    found = ({name: value for name, value in state.items() if name.startswith(part)} for part in parts)
    return (*found, load_file(last / "pretrained_model" / "model.safetensors"))


def assert_close(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    scale = max(float(np.abs(value).max()) for value in a.values())
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-3, atol=1e-5 * scale, err_msg=name)


def assert_trained_alike(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    """Where a gradient is nothing but rounding, Adam moves a weight by the learning rate all the same."""
    assert a.keys() == b.keys()
    apart = np.concatenate([np.abs(a[name] - b[name]).ravel() for name in a])
    assert apart.max() < RATE
    assert apart.mean() < 1e-3 * RATE


@pytest.mark.parametrize("mixed_in", [(), (0.25,), (0.25, 0.1), (0.9, 0.05)])
@pytest.mark.parametrize("batch_size", [8, 13, 64, 100])
def test_every_share_of_a_step_has_samples(batch_size: int, mixed_in: tuple[float, ...]) -> None:
    """As many as the others, but for one; and all of them together are the step."""
    beside = [round(fraction * batch_size) for fraction in mixed_in]
    sizes = [batch_size - sum(beside), *beside]
    for shares in range(1, batch_size + 1):
        found = [places(sizes, 3, share, shares) for share in range(shares)]
        counts = [sum(map(len, share)) for share in found]
        assert max(counts) - 1 <= min(counts) > 0
        for size, stream in zip(sizes, zip(*found, strict=True), strict=True):
            assert np.concatenate(stream).tolist() == list(range(3 * size, 4 * size))


@pytest.mark.parametrize(
    ("decoder", "size", "count"), [("parallel", 13, 5), ("autoregressive", 13, 5), ("autoregressive", 8, 8)]
)
def test_pieces_add_up_to_the_step(
    settings: Settings, dataset: Path, questions: Path, decoder: str, size: int, count: int
) -> None:
    """Also where they are of unequal size, or of one kind of sample: masked means are of the whole step."""
    config = settings(batch_size=size, scenes=dataset, questions=questions, decoder=decoder)
    whole, pieces = TrainingRun.start(config), TrainingRun.start(settings(**vars(config) | {"accumulate": count}))
    seen = torch.cat([pieces.batch(0, i, count)["state"] for i in range(count)])
    assert torch.equal(seen, whole.batch(0)["state"])
    assert any((pieces.batch(0, i, count)["answers"] < 0).all() for i in range(count))
    assert not pieces.batch(0, count - 1, count)["mask"].any()  # no action
    a, b = whole.train_step(RATE), pieces.train_step(RATE)
    assert a.named().keys() == b.named().keys() >= {"total", "action", "answer"}
    for name, value in a.named().items():
        assert b.named()[name] == pytest.approx(value, rel=1e-4), name
    assert_close(moments(whole), moments(pieces))


def test_recomputed_layers_give_the_same_gradients(settings: Settings) -> None:
    found = {}
    for again in (False, True):
        training = TrainingRun.start(settings(gradient_checkpointing=again))
        calls: list[int] = []
        layer = training.bare.backbone.language_model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss = training.train_step(RATE).named()
        found[again] = (loss, moments(training), len(calls))
    assert found[True][0] == pytest.approx(found[False][0])
    assert_close(found[False][1], found[True][1])
    assert (found[False][2], found[True][2]) == (1, 2)  # it did compute them twice
    with pytest.raises(VolarError, match="decoder=flow"):
        TrainingRun.start(settings(gradient_checkpointing=True, decoder="flow"))


def launch(
    words: list[str], config: TrainConfig, program: tuple[str, ...] = ("-m", "volar.vla.train"), **changes: object
) -> tuple[int, str, str]:
    """`volar-train`, or a program that calls it, in two processes on this machine: what they leave and say."""
    names = ("dataset", "scenes", "questions", "steps", "batch_size", "warmup_steps", "precision", "threads", "width")
    names += ("layers", "validation", "output", "resume", "backbone", "vision", "language", "learning_rate")
    given = {name: getattr(config, name) for name in names} | changes
    settings = [f"{name}={value}".replace("True", "true") for name, value in given.items() if value is not None]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:], *program, *settings]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        try:
            said = launcher.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            launcher.terminate()  # and with it the processes, which a kill would leave behind
            pytest.fail(f"they wait for each other: {launcher.communicate()[1][-3000:]}")
    return launcher.returncode, *said


def finish(words: list[str], config: TrainConfig, **changes: object) -> None:
    code, said, errors = launch(words, config, **changes)
    assert code == 0, errors[-3000:]
    assert "2 processes" in said
    assert said.count("policy: ") == 1  # one of them speaks


LAUNCHERS = {
    "ddp": ["accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    "fsdp": ["torchrun", "--standalone", "--nproc_per_node", "2"],
}


# One of two processes is told to stop, once all of them have agreed to go on after step 1, or in step 2.
SIGNALLED = """
import os, signal
from volar.vla import train, training_run
do = training_run.TrainingRun.{where}
def signalled(self, *args):
    if self.step == 1 and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)
    return do(self, *args)
training_run.TrainingRun.{where} = signalled
raise SystemExit(train.main())
"""


@pytest.mark.parametrize(("parallel", "where"), [("ddp", "save"), ("fsdp", "train_step")])
def test_two_processes_stop_and_go_on_as_one_that_does_not(
    settings: Settings, dataset: Path, questions: Path, tmp_path: Path, parallel: str, where: str
) -> None:
    """A signal to one of them ends both after the same step. What they leave is read, and gone on with, by one."""
    config = settings(scenes=dataset, questions=questions, steps=4, batch_size=9, width=32, layers=2, validation=0.2)
    train(settings(**vars(config) | {"output": tmp_path / "one"}))
    how: dict[str, object] = {"parallel": parallel, "accumulate": 2}
    program, last = tmp_path / "signalled.py", config.output / "checkpoints" / "last"
    program.write_text(SIGNALLED.format(where=where))
    code, _, errors = launch(LAUNCHERS[parallel], config, (str(program),), **how, save_every_steps=1)
    assert code != 0
    assert last.resolve().name == "000002", errors[-3000:]
    finish(LAUNCHERS[parallel], config, **how, resume=True)
    (weights, *moments, policy), (weights_2, *moments_2, policy_2) = (read(tmp_path / name) for name in ("one", "run"))
    for one, two in zip(moments, moments_2, strict=True):
        assert_close(one, two)
    for one, two in ((weights, weights_2), (policy, policy_2)):
        assert_trained_alike(one, two)
    rows = [json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("one", "run")]
    for name in ("total", "action", "answer", "patch", "place"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-3), name
    assert {name for name in rows[0] if "/" in name} == {name for name in rows[1] if "/" in name}
    for name in ("m", "rad", "gripper"):
        assert rows[1][f"validation/l1_{name}"] == pytest.approx(rows[0][f"validation/l1_{name}"], rel=1e-2), name
    load_parts(last / "pretrained_model")
    train(settings(**vars(config) | {"steps": 5, "resume": True}))
    assert last.resolve().name == "000005"


def test_disks_of_their_own_are_refused(settings: Settings, tmp_path: Path) -> None:
    """As two machines have, of which only the first wrote a checkpoint."""
    train(settings(steps=1, width=16, layers=1))
    program = tmp_path / "machines.py"
    program.write_text(
        "import os, sys\n"
        "from volar.vla import train\n"
        "if os.environ['RANK'] == '1':\n"
        "    sys.argv = [f'{word}-of-another' if word.startswith('output=') else word for word in sys.argv]\n"
        "raise SystemExit(train.main())\n"
    )
    config = settings(steps=2, width=16, layers=1, resume=True)
    code, _, errors = launch(LAUNCHERS["fsdp"], config, (str(program),), resume=True)
    assert code != 0
    assert "process 0 finds that of step 1 in" in errors
    assert "process 1 none: output= must be on a file system that all machines share" in errors


def test_shares_of_a_pretrained_backbone_train_as_one(settings: Settings, tmp_path: Path) -> None:
    """Frozen weights are shared out, too; low-rank updates learn the same, and the policy is whole."""
    model = tiny_folder(tmp_path / "model")
    parts = {"backbone": str(model), "vision": "frozen", "language": "lora", "learning_rate": 3e-3}
    config = settings(steps=3, **parts)
    train(settings(**vars(config) | {"output": tmp_path / "one"}))
    finish(LAUNCHERS["fsdp"], config, parallel="fsdp")
    one, two = read(tmp_path / "one"), read(tmp_path / "run")
    assert any("lora_A" in name and np.abs(value).max() > 0 for name, value in two[1].items())
    for i in (1, 2):
        assert_close(one[i], two[i])
    for i in (0, 3):
        assert_trained_alike(one[i], two[i])
    frozen = [name for name in one[3] if "vision_model" in name or "base_layer" in name]
    assert frozen
    assert all(np.array_equal(one[3][name], two[3][name]) for name in frozen)
    load_parts(tmp_path / "run" / "checkpoints" / "last" / "pretrained_model")


def test_launchers_that_do_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(UsageError, match="parallel=fsdp"):
            Processes()
    with monkeypatch.context() as patch:  # as `accelerate launch --num_processes 2` leaves it without GPUs
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        with pytest.raises(UsageError, match="--multi_gpu"):
            Processes()


def test_settings_of_several_processes(settings: Settings) -> None:
    for wrong in ({"accumulate": 0}, {"parallel": "fsdp", "tokenizer": "fast", "validation": 0.1}, {"validation": 1.0}):
        with pytest.raises(UsageError):
            settings(**wrong)
    with pytest.raises(VolarError, match="batch_size 8 for 9 parts"):
        TrainingRun.start(settings(accumulate=9))


def test_an_answer_is_one_word(settings: Settings) -> None:
    tokenizer = TrainingRun.start(settings()).tokenizer
    assert tokenizer.encode(["is it red"])[0, 3] == answer_id(tokenizer, "red")
    with pytest.raises(VolarError, match="'dark red' is 2 tokens"):
        answer_id(tokenizer, "dark red")
