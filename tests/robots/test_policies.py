"""A policy is found by path, and a path that holds none says what one looks like."""

import json
from pathlib import Path

import pytest

from volar.robots.errors import Unknown, VolarError
from volar.robots.policies import PolicyNotFound, find_policy, load_policy


def policy_directory(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("above", ["", "000100", "checkpoints", "run"])
def test_a_run_resolves_to_its_last_checkpoint(tmp_path: Path, above: str) -> None:
    wanted = policy_directory(tmp_path / "run/checkpoints/000100/pretrained_model", type="volar")
    (tmp_path / "run/checkpoints/last").symlink_to("000100")
    start = {"": wanted, "000100": wanted.parent, "checkpoints": wanted.parents[1], "run": tmp_path / "run"}[above]
    assert find_policy(start).resolve() == wanted


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(PolicyNotFound, match=r"nowhere: no such folder; .*config\.json.*artifact\.json"):
        load_policy(tmp_path / "nowhere")


def test_a_folder_without_a_policy_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "results.json").touch()
    with pytest.raises(PolicyNotFound, match=r"the folder holds results\.json"):
        load_policy(tmp_path)
    with pytest.raises(PolicyNotFound, match="it is a file"):
        load_policy(tmp_path / "results.json")


def test_an_unknown_type_names_the_types(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match=r"policy type 'act'.*choices: .*volar"):
        load_policy(policy_directory(tmp_path / "policy", type="act"))


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    folder = policy_directory(tmp_path / "policy", type="volar")
    (folder / "config.json").write_text('{"type": "vol')
    with pytest.raises(VolarError, match=r"config\.json cannot be read"):
        load_policy(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(VolarError, match='has no "type"'):
        load_policy(folder)
