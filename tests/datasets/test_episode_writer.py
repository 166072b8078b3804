"""Datasets are the same however they came about, and what was complete survives."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from volar.datasets.durable_file import DiskFull, OutputExists, write_durably
from volar.datasets.episode import Episode
from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.lerobot_format import load_contract, load_info, read_episodes
from volar.datasets.lerobot_layout import DatasetError, encode_episode
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.errors import VolarError

SOURCE = {"seed": 0}


def files(root: Path) -> dict[str, str]:
    """Path -> SHA-256 of every file, the frame cache aside."""
    paths = [p for p in sorted(root.rglob("*")) if p.is_file() and ".volar_cache" not in p.parts]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def write(writer: EpisodeWriter, episode: Callable[[int], Episode], stop: int) -> EpisodeWriter:
    for number in range(writer.episodes, stop):
        writer.append(episode(number))
    return writer


@pytest.mark.parametrize("killed_at", [(0,), (3,), (4,), (7, 9), (11,)])
@pytest.mark.parametrize("flush", [False, True])
def test_a_resumed_dataset_is_the_same(
    dataset: Path,
    tmp_path: Path,
    contract: PolicyContract,
    episode: Callable[[int], Episode],
    killed_at: tuple[int, ...],
    flush: bool,
) -> None:
    root = tmp_path / "out"
    writer = EpisodeWriter.create(root, contract, shard_episodes=4, source=SOURCE)
    for stop in killed_at:
        write(writer, episode, stop)
        if flush:
            writer.flush()
        durable = stop if flush else stop // 4 * 4
        with pytest.raises(DatasetError, match="resume=true"):
            load_info(root)
        writer = EpisodeWriter.resume(root, contract, SOURCE)
        assert writer.episodes == durable
    write(writer, episode, 11).finalize()
    assert files(root) == files(dataset)


def test_a_kill_between_the_two_files_of_a_shard(
    dataset: Path, tmp_path: Path, contract: PolicyContract, episode: Callable[[int], Episode]
) -> None:
    root = tmp_path / "out"
    writer = write(EpisodeWriter.create(root, contract, shard_episodes=4, source=SOURCE), episode, 6)
    writer.flush()
    rows = (root / "meta/episodes/chunk-000/file-001.parquet").read_bytes()
    write(writer, episode, 8)
    # The data of episodes 4 to 7 are there, the rows still those of 4 and 5.
    (root / "meta/episodes/chunk-000/file-001.parquet").write_bytes(rows)
    write(EpisodeWriter.resume(root), episode, 11).finalize()
    assert files(root) == files(dataset)


def test_data_without_rows_is_not_left_for_others_to_read(
    tmp_path: Path, contract: PolicyContract, episode: Callable[[int], Episode]
) -> None:
    root = tmp_path / "out"
    write(EpisodeWriter.create(root, contract, shard_episodes=4), episode, 8)
    (root / "meta/episodes/chunk-000/file-001.parquet").unlink()
    writer = EpisodeWriter.resume(root)
    assert writer.episodes == 4
    writer.finalize()
    assert [p.name for p in root.glob("data/*/*")] == ["file-000.parquet"]
    assert len(list(read_episodes(root))) == 4


def test_a_finished_dataset_can_grow(
    dataset: Path, tmp_path: Path, contract: PolicyContract, episode: Callable[[int], Episode]
) -> None:
    root = tmp_path / "out"
    write(EpisodeWriter.create(root, contract, shard_episodes=4, source=SOURCE), episode, 6).finalize()
    write(EpisodeWriter.resume(root), episode, 11).finalize()
    assert files(root) == files(dataset)


def test_the_data_do_not_depend_on_who_encoded_them(
    dataset: Path, tmp_path: Path, contract: PolicyContract, episode: Callable[[int], Episode]
) -> None:
    root = tmp_path / "out"
    writer = EpisodeWriter.create(root, contract, shard_episodes=4, source=SOURCE)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for encoded in pool.map(partial(encode_episode, contract=contract), [episode(i) for i in range(11)]):
            writer.append(encoded)
    writer.finalize()
    assert files(root) == files(dataset)


COLLECT_AND_DIE = """
import os, signal, sys
from pathlib import Path
from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.lerobot_format import read_episodes
writer = EpisodeWriter.create(Path(sys.argv[2]), EpisodeWriter.resume(Path(sys.argv[1])).contract, shard_episodes=4)
for number, episode in enumerate(read_episodes(Path(sys.argv[3]))):
    writer.append(episode)
    if number == 9:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_only_the_open_shard(
    dataset: Path, tmp_path: Path, episode: Callable[[int], Episode], assert_same: Callable[[Episode, Episode], None]
) -> None:
    root = tmp_path / "out"
    arguments = [sys.executable, "-c", COLLECT_AND_DIE, str(dataset), str(root), str(dataset)]
    assert subprocess.run(arguments, check=False, timeout=180).returncode == -signal.SIGKILL
    writer = EpisodeWriter.resume(root)
    assert writer.episodes == 8
    writer.finalize()
    for number, got in enumerate(read_episodes(root)):
        assert_same(got, episode(number))


def test_what_a_kill_in_the_first_file_leaves_is_in_nobodys_way(tmp_path: Path, contract: PolicyContract) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / ".writer.json.tmp").write_text("{")
    EpisodeWriter.create(tmp_path, contract)
    assert EpisodeWriter.resume(tmp_path).episodes == 0


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, contract: PolicyContract) -> None:
    (tmp_path / "thesis.tex").write_text("everything")
    for overwrite in (False, True):
        with pytest.raises(OutputExists, match=r"holds something else \(thesis.tex\); give another"):
            EpisodeWriter.create(tmp_path, contract, overwrite=overwrite)
    with pytest.raises(OutputExists, match="is a file"):
        EpisodeWriter.create(tmp_path / "thesis.tex", contract)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.tex"]


def test_overwriting_leaves_the_dataset_of_another_program_alone(tmp_path: Path, contract: PolicyContract) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    with pytest.raises(OutputExists, match=r"something else \(meta\)"):
        EpisodeWriter.create(tmp_path, contract, overwrite=True)
    assert (tmp_path / "meta" / "info.json").read_text() == "{}"


def test_overwriting_replaces_the_dataset_only(
    tmp_path: Path, contract: PolicyContract, episode: Callable[[int], Episode]
) -> None:
    root = tmp_path / "out"
    write(EpisodeWriter.create(root, contract, shard_episodes=4), episode, 8).finalize()
    (root / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists, match="resume=true"):
        EpisodeWriter.create(root, contract)
    write(EpisodeWriter.create(root, contract, overwrite=True), episode, 1).finalize()
    assert len(list(read_episodes(root))) == 1
    assert (root / "notes.txt").read_text() == "mine"


def test_resuming_with_other_settings_is_refused(tmp_path: Path, contract: PolicyContract) -> None:
    from dataclasses import replace

    with pytest.raises(DatasetError, match="nothing to resume"):
        EpisodeWriter.resume(tmp_path)
    root = tmp_path / "out"
    EpisodeWriter.create(root, contract, source={"suite": "tabletop", "seed": 0})
    with pytest.raises(DatasetError, match="seed: 0, now 1"):
        EpisodeWriter.resume(root, contract, {"suite": "tabletop", "seed": 1})
    with pytest.raises(DatasetError, match="cameras"):
        EpisodeWriter.resume(root, replace(contract, cameras=(CameraSpec("front", 8, 8),)))


def test_an_empty_dataset_is_refused(tmp_path: Path, contract: PolicyContract) -> None:
    with pytest.raises(VolarError, match="no episode"):
        EpisodeWriter.create(tmp_path / "out", contract).finalize()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_keeps_what_was_complete(
    dataset: Path, tmp_path: Path, contract: PolicyContract, episode: Callable[[int], Episode]
) -> None:
    root = tmp_path / "out"
    writer = write(EpisodeWriter.create(root, contract, shard_episodes=4, source=SOURCE), episode, 4)
    # The next file's temporary name leads to a device that is always full.
    (root / "data/chunk-000/.file-001.parquet.tmp").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match=r"file-001.*resume=true"):
        write(writer, episode, 8)
    writer.flush()  # as whoever is interrupted does
    assert not list(root.rglob("*.tmp"))
    writer = EpisodeWriter.resume(root)
    assert writer.episodes == 4
    write(writer, episode, 11).finalize()
    assert files(root) == files(dataset)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    write_durably(tmp_path / "a" / "b.txt", b"one")
    write_durably(tmp_path / "a" / "b.txt", b"two")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]
    with pytest.raises(VolarError, match="cannot be written"):
        write_durably(tmp_path / "a" / "b.txt" / "c.txt", b"below a file")


def test_finalize_returns_the_contract_that_is_stored(
    tmp_path: Path, contract: PolicyContract, episode: Callable[[int], Episode]
) -> None:
    root = tmp_path / "out"
    returned = write(EpisodeWriter.create(root, contract), episode, 3).finalize()
    assert load_contract(root) == returned
    assert returned.sha256 == load_contract(root).sha256
