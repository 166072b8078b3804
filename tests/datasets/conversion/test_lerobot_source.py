"""volar-convert source=lerobot: labels stay with their camera, numbers mean one thing, what is not there is named."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from volar.datasets.convert import ConvertConfig, convert
from volar.datasets.lerobot_format import load_contract, load_info, read_episodes
from volar.datasets.lerobot_layout import DatasetError


@pytest.mark.parametrize("cameras", [(), ("front",), ("wrist", "front"), ("wrist",)])
def test_places_in_an_image_stay_with_its_camera(dataset: Path, tmp_path: Path, cameras: tuple[str, ...]) -> None:
    config = ConvertConfig("lerobot", dataset, tmp_path / "out", cameras=cameras, episodes=2)
    convert(config)
    for before, after in zip(read_episodes(dataset), read_episodes(config.output), strict=False):
        np.testing.assert_array_equal(after.points[..., :3], before.points[..., :3])
        if cameras[:1] == ("wrist",):
            assert np.isnan(after.points[..., 3:]).all()
        else:
            np.testing.assert_array_equal(after.points[..., 3:], before.points[..., 3:])


def test_a_folder_means_what_its_own_contract_says(dataset: Path, tmp_path: Path) -> None:
    own = load_contract(dataset)
    config = ConvertConfig("lerobot", dataset, tmp_path / "out", contract=tmp_path / "given.json", episodes=2)
    replace(own, statistics={}, cameras=(), chunk_length=1, execute_steps=1).save(tmp_path / "given.json")
    convert(config)
    units = ("mm", *own.action.units[1:])
    replace(own, robot="ur5e", action=replace(own.action, units=units)).save(tmp_path / "given.json")
    says = (
        r"another meta/volar_contract\.json \(action\.units: contract= \['mm', .*; robot: contract= ur5e, its own fr3\)"
    )
    with pytest.raises(DatasetError, match=says):
        convert(replace(config, overwrite=True))
    with pytest.raises(DatasetError, match=r"robot: dataset= widowx, its own fr3.*leave dataset= out"):
        convert(replace(config, contract=None, dataset="bridge", overwrite=True))


def without(paths: list[Path], column: str) -> None:
    assert paths
    for path in paths:
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns([column]), path)


@pytest.fixture(scope="module")
def films(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("films") / "dataset"
    convert(ConvertConfig("lerobot", dataset, root, images="video", episodes=3))
    return root


@pytest.mark.parametrize(
    ("folder", "column", "says"),
    [
        ("data", "index", r"file-000\.parquet has no column 'index'"),
        ("data", "timestamp", "episode 0: no column 'timestamp'"),
        ("data", "action", "episode 0: no column 'action'"),
        ("meta/episodes", "videos/observation.images.front/from_timestamp", "episode 0: .*from_timestamp"),
        ("meta/episodes", "length", r"file-000\.parquet cannot be read.*lacks length"),
    ],
)
def test_a_column_that_is_missing_is_named(films: Path, tmp_path: Path, folder: str, column: str, says: str) -> None:
    root = shutil.copytree(films, tmp_path / "films")
    without(list((root / folder).rglob("*.parquet")), column)
    with pytest.raises(DatasetError, match=says):
        convert(ConvertConfig("lerobot", root, tmp_path / "out"))


def test_an_episode_of_which_a_column_is_missing_is_left_out(dataset: Path, tmp_path: Path) -> None:
    root = shutil.copytree(dataset, tmp_path / "copy")
    without([root / "data/chunk-000/file-001.parquet"], "index")  # episodes 4 to 7
    config = ConvertConfig("lerobot", root, tmp_path / "out", on_error="skip")
    convert(config)
    assert len(load_info(config.output).episodes) == 11 - 4
