"""volar-convert source=openvla: a folder that stands alone, a contract that says what the actions mean, and errors."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from volar.datasets.convert import main
from volar.datasets.durable_file import OutputExists
from volar.robots.contract import PolicyContract, check, require
from volar.robots.errors import Unknown, UsageError, VolarError
from volar.robots.fr3 import FR3
from volar.robots.policies import load_policy, read_contract
from volar.robots.ur5e import UR5E
from volar.vla.openvla.checkpoint import Checkpoint, OpenVLAError
from volar.vla.openvla.convert import FOREIGN, ConvertOpenVLAConfig, convert
from volar.vla.openvla.policy import OpenVLAPolicy

from .conftest import write_json

Change = Callable[..., Path]


def contract(path: Path, **settings: Any) -> PolicyContract:
    output = path.parent / "converted"
    convert(ConvertOpenVLAConfig(path, output, **{"overwrite": True, **settings}))
    return read_contract(output)


def test_the_verb_leaves_a_policy_that_stands_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The two entry points are seen only once the distribution is installed: run `make setup` where this fails."""
    assert "openvla" in {point.name for point in entry_points(group="volar.converters")}
    output = tmp_path / "policy"
    words = ["source=openvla", f"path={checkpoint}", "dataset=mine", "robot=ur5e", f"output={output}"]
    monkeypatch.setattr(sys, "argv", ["volar-convert", *words])
    assert main() == 0
    assert "for ur5e at 10 Hz" in capsys.readouterr().out
    shutil.rmtree(checkpoint)
    policy = load_policy(output)
    assert isinstance(policy, OpenVLAPolicy)
    require(policy.contract, UR5E)
    assert main() == 1  # the checkpoint is gone, and the output is there
    assert "config.json cannot be read" in capsys.readouterr().err


def test_the_weights_are_not_written_again(checkpoint: Path, tmp_path: Path) -> None:
    convert(ConvertOpenVLAConfig(checkpoint, tmp_path / "a", dataset="mine", robot="fr3"))
    for path in checkpoint.glob("*.safetensors"):
        assert (tmp_path / "a" / path.name).stat().st_ino == path.stat().st_ino
    # As in the hub's cache: links to files elsewhere, which may be cleaned away.
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in checkpoint.iterdir():
        (linked / path.name).symlink_to(path)
    convert(ConvertOpenVLAConfig(linked, tmp_path / "b", dataset="mine", robot="fr3"))
    assert not any(path.is_symlink() for path in (tmp_path / "b").iterdir())


def test_one_file_without_an_index_will_do(checkpoint: Path, tmp_path: Path) -> None:
    files = sorted(checkpoint.glob("*.safetensors"))
    save_file(
        {name: value for file in files for name, value in load_file(file).items()}, checkpoint / "model.safetensors"
    )
    for path in (*files, checkpoint / "model.safetensors.index.json"):
        path.unlink()
    convert(ConvertOpenVLAConfig(checkpoint, tmp_path / "out", dataset="mine", robot="fr3"))
    load_policy(tmp_path / "out")


def test_the_contract_of_an_open_x_dataset_is_known(pristine: Path) -> None:
    found = contract(pristine, dataset="bridge_orig")
    assert (found.robot, found.action.rate_hz, found.action.rotation) == ("widowx", 5, "euler_xyz")
    assert (found.action.kind, found.action.frame, found.action.gripper) == ("ee_delta", "base", "open_is_one")
    assert (found.chunk_length, found.execute_steps) == (1, 1)
    assert [(c.name, c.width, c.height) for c in found.cameras] == [("primary", 56, 56)]
    raw = json.loads((pristine / "config.json").read_text())["norm_stats"]["bridge_orig"]
    statistics = found.statistics["action"]
    for name in ("q01", "q99", "mean", "std", "min", "max", "mask"):
        assert list(getattr(statistics, name)) == raw["action"][name]
    assert statistics.count == raw["num_transitions"]
    assert {mismatch.field for mismatch in check(found, FR3)} >= {"robot", "action.rotation", "action.rate_hz"}


def test_the_contract_of_a_robot_fits_it(pristine: Path) -> None:
    found = contract(pristine, dataset="mine", robot="fr3")
    assert check(found, FR3) == []
    assert found.cameras[0].name == FR3.cameras[0]
    slower = contract(pristine, dataset="mine", robot="fr3", rate_hz=4.0, camera="wrist")
    assert (slower.action.rate_hz, slower.cameras[0].name) == (4.0, "wrist")
    assert [str(mismatch) for mismatch in check(slower, FR3)] == ["action.rate_hz: policy wants 4.0, found 10.0"]


def test_the_contract_of_a_dataset_may_be_given(pristine: Path, tmp_path: Path) -> None:
    of_data = contract(pristine, dataset="mine", robot="fr3", rate_hz=7.0, camera="wrist")
    of_data.save(tmp_path / "data.json")
    found = contract(pristine, dataset="mine", contract=tmp_path / "data.json")
    assert found == of_data
    replace(PolicyContract.load(tmp_path / "data.json"), cameras=()).save(tmp_path / "blind.json")
    with pytest.raises(UsageError, match=r"blind\.json names no camera: give camera="):
        contract(pristine, dataset="mine", contract=tmp_path / "blind.json")
    seen = contract(pristine, dataset="mine", contract=tmp_path / "blind.json", camera="front")
    assert [camera.name for camera in seen.cameras] == ["front"]


def reaching(changed: Change, key: str, dimension: int, q01: float, q99: float) -> Path:
    """The checkpoint with other quantiles of one dimension, and extremes beyond them."""
    stats = json.loads((changed("config.json") / "config.json").read_text())["norm_stats"]
    for name, value in (("q01", q01), ("min", 2 * q01), ("q99", q99), ("max", 2 * q99)):
        stats[key]["action"][name][dimension] = value
    return changed("config.json", norm_stats=stats)


@pytest.mark.parametrize("known_by", ["its name", "a contract"])
def test_bounds_are_widened_to_what_the_statistics_reach(
    changed: Change, tmp_path: Path, capsys: pytest.CaptureFixture[str], known_by: str
) -> None:
    """Those of a dataset are a guess of its arm's; OpenVLA clips nothing."""
    path = reaching(changed, "bridge_orig", 1, -0.7, 0.9)
    if known_by == "a contract":
        contract(path, dataset="mine", robot="fr3").save(tmp_path / "data.json")
        found = contract(path, dataset="bridge_orig", contract=tmp_path / "data.json")
        assert {mismatch.field for mismatch in check(found, FR3)} >= {"action.low", "action.high"}
    else:
        found = contract(path, dataset="bridge_orig")
    assert (found.action.low[1], found.action.high[1]) == (-0.7, 0.9)
    assert "'bridge_orig' reach from -0.7 to 0.9 m in dy: the policy's bounds are widened" in capsys.readouterr().out
    policy = load_policy(path.parent / "converted")
    assert isinstance(policy, OpenVLAPolicy)
    np.testing.assert_allclose(policy.physical(np.array([0, 0.99, 0, 0, 0, 0, 1]))[1], 0.995 * 1.6 - 0.7, rtol=1e-6)


def test_what_a_robot_cannot_do_in_a_step_is_told(changed: Change, capsys: pytest.CaptureFixture[str]) -> None:
    most = float(np.float32(0.05))  # of data in float32: a little above the bound
    contract(reaching(changed, "mine", 0, -0.05, most), dataset="mine", robot="fr3")
    assert "reach" not in capsys.readouterr().out
    found = contract(reaching(changed, "mine", 0, -0.053, 0.03), dataset="mine", robot="fr3")
    assert check(found, FR3) == []
    assert "reach from -0.053 to 0.03 m in dx, fr3 from -0.05 to 0.05: clipped to that" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"reach from -0.02 to 0.07 m in dx, fr3 from -0.05 to 0.05: .*contract="):
        contract(reaching(changed, "mine", 0, -0.02, 0.07), dataset="mine", robot="fr3")


@pytest.mark.parametrize("settings", [{"dataset": "bridge_orig"}, {"dataset": "mine", "robot": "ur5e"}])
def test_a_gripper_that_is_no_opening_is_refused(changed: Change, settings: dict[str, Any]) -> None:
    path = reaching(changed, settings["dataset"], 6, -1.0, 1.0)
    with pytest.raises(UsageError, match=r"reach from -1 to 1 1 in gripper, a gripper from 0 to 1: 1 is open"):
        contract(path, **settings)


def test_a_checkpoint_trained_with_augmentation_needs_its_crop(pristine: Path, tmp_path: Path) -> None:
    path = tmp_path / "openvla-7b+mine+b16--image_aug"
    shutil.copytree(pristine, path)
    (tmp_path / "link").symlink_to(path)
    for given in (path, tmp_path / "link"):
        with pytest.raises(UsageError, match=r"image_aug was trained with augm.*center_crop=0\.9.*center_crop=1 "):
            contract(given, dataset="mine", robot="fr3")
    for share in (0.9, 1.0):
        found = contract(path, dataset="mine", robot="fr3", center_crop=share)
        assert found.preprocessing["openvla.center_crop"] == f"{share:g}"


def test_data_of_an_arm_that_is_not_known_asks_for_its_contract(changed: Change) -> None:
    """robot=fr3 would be wrong for all of them."""
    from volar.datasets.oxe import OXE

    assert not set(FOREIGN) & {name for called, entry in OXE.items() for name in (called, *entry.tfds)}
    stats = json.loads((changed("config.json") / "config.json").read_text())["norm_stats"]
    path = changed("config.json", norm_stats=stats | dict.fromkeys(FOREIGN, stats["mine"]))
    for key in FOREIGN:
        with pytest.raises(UsageError, match=rf"{key}.*give contract=.*that is known: bridge_orig$") as error:
            contract(path, dataset=key)
        assert "robot=" not in str(error.value)


def test_statistics_beside_the_checkpoint_come_first(checkpoint: Path) -> None:
    """As OpenVLA's own evaluation takes them, which fine-tuning writes there."""
    raw = json.loads((checkpoint / "config.json").read_text())["norm_stats"]["mine"]
    del raw["action"]["mask"]
    (checkpoint / "dataset_statistics.json").write_text(json.dumps({"tuned": raw}))
    found = contract(checkpoint, robot="fr3")  # the only one: no need to name it
    assert found.statistics["action"].mask == (True,) * 7
    with pytest.raises(Unknown, match=r"unknown dataset in norm_stats 'mine'.*choices: tuned"):
        contract(checkpoint, dataset="mine", robot="fr3")


def test_rounded_image_statistics_count_where_there_are_any(changed: Change) -> None:
    path = changed("preprocessor_config.json")
    assert Checkpoint.open(path).means[0] == (0.484375, 0.455078125, 0.40625)
    path = changed("preprocessor_config.json", tvf_normalize_params=None)
    assert Checkpoint.open(path).means == ((0.485, 0.456, 0.406), (0.5, 0.5, 0.5))
    path = changed("preprocessor_config.json", means=[[0.5, 0.5, 0.5]])
    with pytest.raises(OpenVLAError, match="each of two vision towers"):
        Checkpoint.open(path)


def test_a_dataset_that_is_not_there_names_those_that_are(pristine: Path) -> None:
    with pytest.raises(Unknown, match=r"'bridge'; did you mean bridge_orig\?.*choices: bridge_orig, mine"):
        contract(pristine, dataset="bridge")
    with pytest.raises(OpenVLAError, match="trained on 2 datasets; give dataset=KEY: bridge_orig, mine"):
        contract(pristine)
    with pytest.raises(UsageError, match=r"'mine' mean is not known here; give robot=fr3.*contract="):
        contract(pristine, dataset="mine")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model_type": "llava"}, "model_type 'llava', not 'openvla'"),
        ({"use_fused_vision_backbone": False}, "use_fused_vision_backbone False; what is known here is True"),
        ({"timm_model_ids": ["vit_base", "x"]}, "timm_model_ids .*vit_large_patch14_reg4_dinov2"),
        (
            {"llm_backbone_id": "vicuna-v15-7b"},
            "llm_backbone_id 'vicuna-v15-7b'; what is known here is 'llama2-7b-pure'",
        ),
        ({"n_action_bins": 128}, "n_action_bins 128"),
        ({"text_config": None}, "lacks text_config"),
        ({"image_sizes": None}, "image_sizes None; it must have one for each of two towers"),
        ({"image_sizes": [56]}, r"image_sizes \[56\]; it must have one for each"),
        (
            {"image_resize_strategy": "resize-crop"},
            "image_resize_strategy 'resize-crop'; what is known .*'resize-naive'",
        ),
        ({"image_resize_strategy": None}, "image_resize_strategy 'letterbox'; what is known"),  # OpenVLA's default
        ({"norm_stats": None}, "no norm_stats in config.json and no dataset_statistics.json"),
        ({"image_sizes": [224, 224]}, "for images of 56 pixels, config.json says 224"),
        ({"norm_stats": {"a": {"action": {"q01": [0.0]}}}}, "norm_stats of 'a' cannot be used: KeyError 'q99'"),
    ],
)
def test_what_is_not_known_is_refused(changed: Change, settings: dict[str, Any], reason: str) -> None:
    path = changed("config.json", **settings)
    with pytest.raises(VolarError, match=reason):
        contract(path, dataset="a" if "norm_stats" in settings else "mine", robot="fr3")
    assert not (path.parent / "converted").exists()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("lost", "lacks model-00002-of-00002.safetensors"),
        ("cut", r"model-00001-of-00002.safetensors cannot be read, it is cut short or damaged"),
        ("missing", r"projector.fc3.bias must be \(32,\), found nothing of that name"),
        ("wider", r"projector.fc3.bias must be \(32,\), found \(33,\)"),
        ("foreign", "proprio_projector.weight is no part of OpenVLA"),
        ("index", r"model\.safetensors\.index\.json has no weight_map"),
        ("action_head--1.pt", "action_head--1.pt: an OpenVLA-OFT"),
        ("proprio_projector--1.pt", "proprio_projector--1.pt: an OpenVLA-OFT"),
        ("vision_backbone--150000_checkpoint.pt", "vision_backbone--150000_checkpoint.pt: an OpenVLA-OFT"),
        ("noisy_action_projector--1.pt", "noisy_action_projector--1.pt: an OpenVLA-OFT"),
        ("letterbox", "preprocessor_config.json has image_resize_strategy 'letterbox'"),
        ("adapter", "LoRA adapter alone"),
        ("words", "has no tokenizer.json"),
    ],
)
def test_a_damaged_checkpoint_is_named(checkpoint: Path, damage: str, reason: str) -> None:
    first, second = sorted(checkpoint.glob("*.safetensors"))
    content = load_file(first)
    assert "projector.fc3.bias" in content
    if damage == "lost":
        second.unlink()
    elif damage == "cut":
        first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    elif damage == "missing":
        save_file({name: value for name, value in content.items() if name != "projector.fc3.bias"}, first)
    elif damage == "wider":
        save_file(content | {"projector.fc3.bias": torch.zeros(33)}, first)
    elif damage == "foreign":
        save_file(content | {"proprio_projector.weight": torch.zeros(3)}, first)
    elif damage == "index":
        (checkpoint / "model.safetensors.index.json").write_text('{"metadata": {}}')
    elif damage.endswith(".pt"):
        (checkpoint / damage).touch()
    elif damage == "letterbox":
        raw = json.loads((checkpoint / "preprocessor_config.json").read_text())
        write_json(checkpoint / "preprocessor_config.json", raw | {"image_resize_strategy": "letterbox"})
    elif damage == "adapter":
        (checkpoint / "config.json").rename(checkpoint / "adapter_config.json")
    else:
        (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(VolarError, match=reason):
        contract(checkpoint, dataset="mine", robot="fr3")
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["openvla"]  # nothing is left behind


def test_actions_of_another_length_do_not_fit(changed: Change) -> None:
    raw = json.loads((changed("config.json") / "config.json").read_text())["norm_stats"]["mine"]
    short = {name: values[:6] for name, values in raw["action"].items()}
    path = changed("config.json", norm_stats={"short": {"action": short}})
    with pytest.raises(VolarError, match="short has actions of 6 numbers, those of fr3 have 7"):
        contract(path, robot="fr3")


def test_what_is_in_output_is_kept_until_told_otherwise(pristine: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(OutputExists, match="holds something else"):
            convert(ConvertOpenVLAConfig(pristine, output, dataset="mine", robot="fr3", overwrite=overwrite))
        with pytest.raises(OutputExists, match=r"mine\.txt is a file; give a folder"):
            convert(
                ConvertOpenVLAConfig(pristine, output / "mine.txt", dataset="mine", robot="fr3", overwrite=overwrite)
            )
    assert (output / "mine.txt").is_file()
    mine = ConvertOpenVLAConfig(pristine, tmp_path / "converted", dataset="mine", robot="fr3")
    convert(mine)
    (mine.output / "old.txt").write_text("x")
    with pytest.raises(OutputExists, match="overwrite=true"):
        convert(mine)
    assert (mine.output / "old.txt").is_file()
    convert(replace(mine, overwrite=True))
    assert not (mine.output / "old.txt").exists()


@pytest.mark.parametrize("config", [None, '{"type": "volar"}', '{"model_type": "openvla"}', "[]", "{", "\x00"])
def test_a_folder_of_another_verb_is_kept_whatever_is_told(pristine: Path, tmp_path: Path, config: str | None) -> None:
    """Every policy, run and artifact has a contract.json."""
    mine = ConvertOpenVLAConfig(pristine, tmp_path / "out", dataset="mine", robot="fr3", overwrite=True)
    convert(mine)
    (mine.output / "config.json").unlink()
    if config is not None:
        (mine.output / "config.json").write_text(config)
    before = {path: path.stat().st_mtime_ns for path in mine.output.iterdir()}
    with pytest.raises(OutputExists, match="holds something else than a converted checkpoint"):
        convert(mine)
    assert {path: path.stat().st_mtime_ns for path in mine.output.iterdir()} == before


def test_settings_that_cannot_be_are_refused(pristine: Path, tmp_path: Path) -> None:
    for settings, reason in (
        ({"robot": "fr3", "contract": tmp_path / "c.json"}, "give one"),
        ({"rate_hz": 0.0}, "rate_hz must be above 0"),
        ({"center_crop": 1.5}, r"center_crop 1.5 is not in \(0, 1\]"),
    ):
        with pytest.raises(UsageError, match=reason):
            ConvertOpenVLAConfig(pristine, tmp_path / "out", **settings)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="overlap"):
        ConvertOpenVLAConfig(pristine, pristine / "out")
    with pytest.raises(Unknown, match="robot 'fr4'"):
        contract(pristine, dataset="mine", robot="fr4")


def test_a_folder_whose_contract_was_lost_is_no_policy(pristine: Path, tmp_path: Path) -> None:
    convert(ConvertOpenVLAConfig(pristine, tmp_path / "out", dataset="mine", robot="fr3"))
    (tmp_path / "out/contract.json").unlink()
    with pytest.raises(VolarError, match="no contract at"):
        load_policy(tmp_path / "out")
    np.testing.assert_equal(json.loads((tmp_path / "out/config.json").read_text())["type"], "openvla")
