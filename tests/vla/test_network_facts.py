"""What a network makes of images is part of the policy's contract, and no business of data or body."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from volar.robots.contract import ContractError, PolicyContract, check
from volar.robots.errors import UsageError, VolarError
from volar.robots.exported_policy import ExportedPolicy
from volar.robots.fr3 import FR3
from volar.robots.policies import default_policy
from volar.vla.checkpoint_policy import load_parts
from volar.vla.export import ExportConfig, export
from volar.vla.network_facts import IMAGE, TOKENS, Asked, image_facts, policy_contract
from volar.vla.pretrained import load_pretrained
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
    assert found[2].preprocessing[IMAGE] == "16x16 antialiased"
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
    with pytest.raises(
        ContractError, match=r"network\.image: the contract says 16x16 antialiased, the network does 32x32"
    ):
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
    assert contract.preprocessing[IMAGE] == "16x16 antialiased"
    train(settings(**SMALL | {"steps": 2}, init=run.output, output=tmp_path / "second", resume=True))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_a_tower_of_any_size_takes_the_cameras(name: str, settings: Settings, dataset: Path, tmp_path: Path) -> None:
    """Rounded to whole tokens, of 16 pixels here; image_size= wins."""
    folder = str(tiny_folder(tmp_path / "model", name))
    for camera_size, size in ((448, 448), (450, 448), (100, 96), (6, 16)):
        assert load_pretrained(folder, camera_size=camera_size).config.image_size == size
    run = TrainingRun.start(settings(backbone=folder, steps=1))
    assert run.bare.config.backbone.image_size == 32 == run.contract.cameras[0].width
    assert run.contract.preprocessing == {**run.contract.preprocessing, IMAGE: "32x32 antialiased"}
    assert run.contract.preprocessing[TOKENS] == "front 4, wrist 4"
    run = TrainingRun.start(settings(backbone=folder, steps=1, image_size=64, camera_tokens=(4, 2)))
    assert run.contract.preprocessing[IMAGE] == "64x64 antialiased"
    assert run.contract.preprocessing[TOKENS] == "front 16, wrist 4"


def test_cameras_keep_as_many_tokens_as_asked_for(settings: Settings, tmp_path: Path) -> None:
    """Of `tiny` and of a pretrained model; what its grid cannot be pooled to is refused, as is a change of it."""
    of = {"backbone": str(tiny_folder(tmp_path / "model")), "steps": 2}  # 2 x 2 tokens
    for changes, tokens in ((SMALL | {"camera_tokens": (4, 1)}, "front 16, wrist 1"), (of, "front 4, wrist 4")):
        assert TrainingRun.start(settings(**changes)).contract.preprocessing[TOKENS] == tokens
    train(settings(**of, camera_tokens=(2, 1)))
    model, contract, _ = load_parts(settings().output / LAST)
    assert contract.preprocessing[TOKENS] == "front 4, wrist 1"
    assert model.config.camera_tokens == (2, 1)
    with pytest.raises(UsageError, match=r"2 x 2 tokens, .* side of front 3; choices: 1, 2$"):
        TrainingRun.start(settings(**of, camera_tokens=(3, 1)))
    with pytest.raises(UsageError, match=r"8 x 8 tokens, .* side of wrist 0; choices: 1, 2, 4, 8$"):
        TrainingRun.start(settings(**SMALL, camera_tokens=(8, 0)))
    with pytest.raises(UsageError, match="one number for each of the cameras front, wrist"):
        TrainingRun.start(settings(**SMALL, camera_tokens=(8,)))
    again = {"init": settings().output, "output": tmp_path / "second", "steps": 1}
    with pytest.raises(VolarError, match=r"has camera_tokens=\(2, 1\), not \(2, 2\)"):
        TrainingRun.start(settings(**again, camera_tokens=(2, 2)))
    assert TrainingRun.start(settings(**again)).bare.config.camera_tokens == (2, 1)


def test_what_the_datas_contract_says_is_done(settings: Settings, dataset: Path, tmp_path: Path) -> None:
    """A new network is made so; a setting or a policy that says otherwise is refused."""
    file = dataset / "meta" / "volar_contract.json"
    plain = PolicyContract.load(file)

    def say(**facts: str) -> None:
        asked = {f"network.{name}": fact for name, fact in facts.items()}
        replace(plain, preprocessing=plain.preprocessing | asked).save(file)

    say(image="16x16 bilinear", tokens="front 16, wrist 16")
    run = settings(**SMALL)
    train(run)
    model, contract, _ = load_parts(run.output / LAST)
    assert (model.config.backbone.image_size, model.config.backbone.resize) == (16, "bilinear")
    assert model.config.camera_tokens == (4, 4)
    assert (contract.preprocessing[IMAGE], contract.preprocessing[TOKENS]) == ("16x16 bilinear", "front 16, wrist 16")
    train(replace(run, steps=2, resume=True))
    with pytest.raises(
        ContractError, match=r"network\.image: the contract says 16x16 bilinear, the network does 32x32"
    ):
        TrainingRun.start(settings(**SMALL, image_size=32))
    say(image="32x32 antialiased")  # as `tiny` does anyway, and leaves unsaid where nobody says it
    assert TrainingRun.start(settings(**SMALL)).contract.preprocessing[TOKENS] == "front 64, wrist 16"
    with pytest.raises(ContractError, match="the network does 16x16 bilinear: give settings that agree"):
        TrainingRun.start(settings(**SMALL, init=run.output, output=tmp_path / "second"))
    for wrong in ({"image": "16x8 bilinear"}, {"tokens": "front 60, wrist 16"}, {"tokens": "front 64"}, {"crop": "no"}):
        say(**wrong)
        with pytest.raises(ContractError, match=r"cannot be read: it takes network\.image such as"):
            Asked.by(PolicyContract.load(file))
