"""A run that starts from a policy has what the policy has, but for what is given; what begins anew is told."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from volar.robots.errors import UsageError, VolarError
from volar.vla.checkpoint_policy import load_parts
from volar.vla.network import whole_parts
from volar.vla.train import TrainConfig, train
from volar.vla.training_run import TrainingRun

Settings = Callable[..., TrainConfig]
LAST = Path("checkpoints/last/pretrained_model")
SMALL = {"width": 16, "layers": 1, "steps": 1}


def contract_of(training: TrainingRun) -> tuple[int, int, str]:
    contract = training.contract
    return contract.chunk_length, contract.execute_steps, contract.preprocessing.get("normalization", "q01_q99")


@pytest.fixture
def trained(settings: Settings, tmp_path: Path) -> Path:
    """A policy that differs from every default."""
    chosen = {"chunk_length": 4, "execute_steps": 4, "normalization": "min_max", "points": "base"}
    train(settings(**SMALL, **chosen, output=tmp_path / "first"))
    return tmp_path / "first"


def test_what_is_left_away_is_as_in_init(
    settings: Settings, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    training = TrainingRun.start(settings(init=trained, output=tmp_path / "second"))
    assert contract_of(training) == (4, 4, "min_max")
    assert capsys.readouterr().out.strip() == ""
    before = load_parts(trained / LAST)[0].state_dict()
    after = training.bare.state_dict()
    assert all(np.array_equal(after[name].numpy(), before[name].numpy()) for name in after)
    given = {"chunk_length": 6, "execute_steps": 1, "normalization": "q01_q99"}
    assert contract_of(TrainingRun.start(settings(init=trained, **given))) == (6, 1, "q01_q99")
    with pytest.raises(UsageError, match="execute_steps 4 is above chunk_length 2: give both"):
        TrainingRun.start(settings(init=trained, chunk_length=2))


def test_what_begins_anew_is_told_and_the_rest_is_kept(
    settings: Settings, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_parts(trained / LAST)[0].state_dict()

    def told(**changes: object) -> tuple[str, set[str]]:
        """The line, and the weights that are not the policy's."""
        capsys.readouterr()
        after = TrainingRun.start(settings(init=trained, **changes)).bare.state_dict()
        same = {n for n in after if n in before and np.array_equal(after[n].numpy(), before[n].numpy())}
        return capsys.readouterr().out.strip(), set(after) - same

    line, new = told(points="hand")
    assert line == f"of init={trained}, action_head.inputs.weight begin anew: points=hand (was base)"
    assert new == {"action_head.inputs.weight"}
    line, new = told(chunk_length=8)
    assert line == f"of init={trained}, action_queries begin anew: chunk_length=8 (was 4)"
    assert new == {"action_queries"}
    line, new = told(decoder="flow")
    assert line == f"of init={trained}, decoder begin anew: decoder=flow (was parallel)"
    assert all(name.startswith("decoder.") for name in new)
    line, _ = told(decoder="autoregressive", tokenizer="fast")
    assert "action tokens begin anew: decoder=autoregressive (was parallel), tokenizer=fast (was bins)" in line


def test_action_tokens_of_init_are_gone_on_with(settings: Settings, tmp_path: Path) -> None:
    fast = settings(**SMALL, decoder="autoregressive", tokenizer="fast")
    train(fast)
    training = TrainingRun.start(settings(init=fast.output, output=tmp_path / "second"))
    assert training.bare.config.tokenizer == "fast"
    assert training.bare.tokenizer == load_parts(fast.output / LAST)[0].tokenizer
    with pytest.raises(VolarError, match=r"12 steps need integers up to 35 .*at most 8 steps; lower chunk_length"):
        TrainingRun.start(settings(init=fast.output, output=tmp_path / "third", chunk_length=12))
    with pytest.raises(UsageError, match="cannot decode sequences of varying length"):
        TrainingRun.start(settings(init=fast.output, output=tmp_path / "third", parallel="fsdp", validation=0.2))


def test_flow_steps_are_a_setting_and_may_be_changed_afterwards(settings: Settings, tmp_path: Path) -> None:
    flow = settings(**SMALL, decoder="flow", flow_steps=3)
    train(flow)
    path = flow.output / LAST / "config.json"
    assert load_parts(path.parent)[0].decoder.steps == 3
    path.write_text(json.dumps(json.loads(path.read_text()) | {"flow_steps": 5}))
    assert load_parts(path.parent)[0].decoder.steps == 5
    steps = [
        TrainingRun.start(settings(init=flow.output, output=tmp_path / "second", **of))
        for of in ({}, {"flow_steps": 7})
    ]
    assert [training.bare.decoder.steps for training in steps] == [5, 7]
    train(settings(**SMALL, output=tmp_path / "parallel"))
    with pytest.raises(UsageError, match=r"flow_steps is for decoder=flow; .* has decoder=parallel"):
        TrainingRun.start(settings(init=tmp_path / "parallel", output=tmp_path / "second", flow_steps=7))
    for of in ({}, {"decoder": "parallel"}, {"init": flow.output, "decoder": "parallel"}):
        with pytest.raises(UsageError, match="flow_steps is for decoder=flow"):
            settings(flow_steps=7, **of)


def test_modules_are_named_whole() -> None:
    names = ["a.x.weight", "a.x.bias", "a.y.weight", "ab.weight", "b"]
    assert whole_parts(["a.x.weight", "a.x.bias"], names) == ["a.x"]
    assert whole_parts(["a.x.weight", "a.x.bias", "a.y.weight", "b"], names) == ["a", "b"]
    assert whole_parts(["a.x.bias", "ab.weight"], names) == ["a.x.bias", "ab"]


def test_a_run_of_before_these_could_be_left_away_goes_on(settings: Settings) -> None:
    """It wrote the defaults where nothing was given; another value is another run, as ever."""
    train(settings(**SMALL))
    record = settings().output / "train.json"
    said = json.loads(record.read_text())
    old = {"chunk_length": "8", "execute_steps": "2", "normalization": "q01_q99", "tokenizer": "bins"}
    assert {said[name] for name in old} == {"None"}
    record.write_text(json.dumps(said | old))
    train(settings(**SMALL | {"steps": 2}, resume=True))
    record.write_text(json.dumps(said | old | {"execute_steps": "4"}))
    with pytest.raises(VolarError, match="execute_steps: was 4, is None"):
        train(settings(**SMALL | {"steps": 3}, resume=True))
