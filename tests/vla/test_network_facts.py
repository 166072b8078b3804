"""What a network makes of images is part of the policy's contract, and no business of data or body."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from volar.robots.contract import ContractError, PolicyContract, check
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.fr3 import FR3
from volar.robots.policies import default_policy
from volar.vla.checkpoint_policy import load_parts
from volar.vla.export import ExportConfig, export
from volar.vla.network_facts import IMAGE, TOKENS, image_facts, policy_contract
from volar.vla.train import TrainConfig, train
from volar.vla.training_run import TrainingRun

from .tiny_vlms import tiny_folder

Settings = Callable[..., TrainConfig]
LAST = Path("checkpoints/last/pretrained_model")
SMALL = {"width": 16, "layers": 1, "steps": 1}


def test_another_resolution_is_another_contract(settings: Settings, contract: PolicyContract, tmp_path: Path) -> None:
    found = [TrainingRun.start(settings(**SMALL, image_size=size)).contract for size in (None, 32, 16)]
    assert found[0] == found[1]  # images as they come
    assert IMAGE not in found[0].preprocessing
    assert found[2].preprocessing[IMAGE] == "16x16 bilinear"
    assert found[2].preprocessing[TOKENS] == "front 64, wrist 16"
    assert found[2].sha256 != found[0].sha256
    fields = [[str(m) for m in check(each, FR3)] for each in found]
    assert fields[2] == fields[0]  # the body sends what it always sent
    of = {"backbone": str(tiny_folder(tmp_path / "model")), "steps": 1}
    network = TrainingRun.start(settings(**of))
    assert network.contract.preprocessing[TOKENS] == ", ".join(
        f"{camera.name} {side**2}"
        for camera, side in zip(contract.cameras, network.bare.config.camera_tokens, strict=True)
    )


def test_contract_and_network_must_say_the_same(settings: Settings, tmp_path: Path) -> None:
    """When it is loaded, and so when it is exported and served; an artifact carries it."""
    train(settings(**SMALL, image_size=16))
    policy = settings().output / LAST
    export(ExportConfig(policy=policy, output=tmp_path / "artifact"))
    assert ExportedPolicy(tmp_path / "artifact").contract == load_parts(policy)[1]
    config = json.loads((policy / "config.json").read_text())
    config["backbone"] |= {"image_size": 32, "patch_size": 4}
    (policy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ContractError, match=r"network\.image: the contract says 16x16 bilinear, config\.json None"):
        load_parts(policy)


def test_policies_from_before_go_on(settings: Settings, tmp_path: Path) -> None:
    """The shipped one, and a run that did not say it: loaded, resumed, and started from."""
    model, contract, _ = load_parts(default_policy())
    assert policy_contract(contract, model.config) == contract
    run = settings(**SMALL, image_size=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("volar.vla.network_facts.image_facts", lambda *_: {})
        train(run)
    assert IMAGE not in load_parts(run.output / LAST)[1].preprocessing
    train(replace(run, steps=2, resume=True))
    assert IMAGE not in load_parts(run.output / LAST)[1].preprocessing
    train(settings(**SMALL, init=run.output, output=tmp_path / "second"))
    model, contract, _ = load_parts(tmp_path / "second" / LAST)
    assert image_facts(contract, model.config).items() <= contract.preprocessing.items()
    assert contract.preprocessing[IMAGE] == "16x16 bilinear"
    train(settings(**SMALL | {"steps": 2}, init=run.output, output=tmp_path / "second", resume=True))
