"""LeRobotDataset folders, v2.1 and v3, as a source of episodes: for those of others, which carry no contract."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from volar.datasets.episode import MISSING_CAMERAS, without_places
from volar.datasets.episode_source import Numbers, SourceEpisode, chosen_cameras
from volar.datasets.lerobot_format import DatasetInfo, episode_of, frames, load_info, missing_cameras, read_tables
from volar.datasets.lerobot_layout import CONTRACT, INFO, DatasetError
from volar.datasets.mixture_contract import OWN
from volar.datasets.oxe import OXE, load_oxe
from volar.datasets.rlds import Losses, OnError
from volar.datasets.robot_joints import RobotJoints, ToldJoints
from volar.robots.contract import CameraSpec, PolicyContract, differences


@dataclass(frozen=True)
class LeRobotSource:
    """`cameras`: the contract's -> the dataset's own. `joints`: how its numbers become the contract's, if they must."""

    info: DatasetInfo
    contract: PolicyContract
    cameras: Mapping[str, str]
    joints: RobotJoints | None = None

    @staticmethod
    def open(
        path: Path,
        name: str | None,
        contract: PolicyContract | None,
        cameras: tuple[str, ...] = (),
        told: ToldJoints | None = None,
    ) -> "LeRobotSource":
        """What states and actions mean is said by the folder's own contract, `contract`, `told` or an entry of `OXE`.

        Of the cameras, those of `contract` are taken if it names any; `cameras`, see `chosen_cameras`, may be fewer.
        Raises `DatasetError` where nothing says what the numbers mean, two of them say different things, the sizes
        differ or the cameras are not those of `contract`, and as `chosen_cameras` and `RobotJoints.of`.
        """
        info = load_info(path)
        chosen = _cameras(info, contract, cameras)
        sizes = {name: info.cameras[theirs] for name, theirs in chosen.items()}  # (height, width)
        joints = None if told is None else RobotJoints.of(info, told)
        meant = _meaning(path, name, contract) if joints is None else joints.contract(info.fps)
        if name is not None or contract is not None:
            _require_own(path, meant, "dataset=" if contract is None else "contract=")
        found = (info.size("observation.state"), info.size("action"))
        wanted = (len(meant.state_names), meant.action.size)
        if found != wanted:
            raise DatasetError(f"{path} has {found} states and actions, its contract {wanted}")
        if meant.action.rate_hz != info.fps:
            raise DatasetError(f"{path} has {info.fps:g} frames a second, its contract {meant.action.rate_hz:g} Hz")
        specs = tuple(CameraSpec(name, width, height) for name, (height, width) in sizes.items())
        return LeRobotSource(info, replace(meant, cameras=specs, statistics={}), chosen, joints)

    @property
    def total(self) -> int:
        return len(self.info.episodes)

    @property
    def absent(self) -> dict[str, str]:
        return {}

    @property
    def about(self) -> Mapping[str, str]:
        fingerprint = hashlib.sha256((self.info.root / INFO).read_bytes()).hexdigest()
        return {"fingerprint": fingerprint} | ({} if self.joints is None else self.joints.facts)

    def episodes(self, start: tuple[int, int], on_error: OnError, losses: Losses) -> Iterator[SourceEpisode]:
        for number, (path, rows) in enumerate(self.info.by_file()):
            first = start[1] if number == start[0] else 0
            if number < start[0] or first >= len(rows):
                continue
            try:
                for k, (row, table) in enumerate(read_tables(path, rows[first:]), first):
                    where = f"{path.name}: episode {row['episode_index']}"
                    first = k + 1
                    yield SourceEpisode(
                        (number, k),
                        where,
                        lambda r=row, t=table: self._numbers(r, t),  # type: ignore[misc]
                        lambda r=row, t=table: self._images(r, t),  # type: ignore[misc]
                    )
            except DatasetError as error:
                if on_error == "raise":
                    raise
                losses.add(len(rows) - first, f"{error} ({len(rows) - first} episodes lost)")

    def _numbers(self, row: dict[str, Any], table: pa.Table) -> Numbers:
        e = episode_of(self.info, table, row, {})
        facts = {key: value for key, value in e.info.items() if key != MISSING_CAMERAS}
        chosen, own = list(self.cameras.values()), list(self.info.cameras)
        points = e.points if chosen[:1] == own[:1] else without_places(e.points)
        state, actions = e.state, e.actions
        if self.joints is not None:
            state, actions = self.joints.state(state), self.joints.actions(actions)
        return Numbers(state, actions, e.instruction, e.success, facts, e.task, points)

    def _images(self, row: dict[str, Any], table: pa.Table) -> dict[str, Iterable[NDArray[np.uint8]]]:
        lacking = missing_cameras(row)
        there = {name: theirs for name, theirs in self.cameras.items() if theirs not in lacking}
        return {name: frames(self.info, table, row, theirs) for name, theirs in there.items()}


def _cameras(info: DatasetInfo, contract: PolicyContract | None, asked: tuple[str, ...]) -> dict[str, str]:
    """Name to be written -> the dataset's own. Raises `DatasetError` where `contract` names others."""
    chosen = chosen_cameras(asked, info.camera_keys)
    if contract is None or not contract.cameras:
        return chosen
    names = [camera.name for camera in contract.cameras]
    wanted = list(chosen) if asked else names
    if lacking := [name for name in wanted if name not in names or name not in chosen]:
        said, has = ", ".join(names), ", ".join(info.cameras) or "none"
        fix = 'cameras=THEIRS:OURS,... says which is which, and "cameras": [] in the contract takes those of the data'
        raise DatasetError(
            f"contract= names the cameras {said}, {info.root} has {has}; {', '.join(lacking)} is not in both: {fix}"
        )
    return {name: chosen[name] for name in wanted}


def _require_own(path: Path, meant: PolicyContract, given: str) -> None:
    """Raises `DatasetError` naming the fields in which the folder's own contract says otherwise."""
    if not (path / CONTRACT).is_file():
        return
    found = differences(meant, PolicyContract.load(path / CONTRACT), ignore=("cameras", *OWN))
    if found:
        said = "; ".join(f"{m.field}: {given} {m.wanted}, its own {m.found}" for m in found)
        fix = f"leave {given} out, or remove the file if it is wrong"
        raise DatasetError(f"{path} has another {CONTRACT} ({said}): {fix}")


def _meaning(path: Path, name: str | None, contract: PolicyContract | None) -> PolicyContract:
    if contract is not None:
        return contract
    if name is not None:
        entry = load_oxe(name)
        return PolicyContract(
            robot=entry.robot,
            action=entry.action,
            state_names=tuple(item for item, _ in entry.state),
            state_units=tuple(unit for _, unit in entry.state),
            cameras=(),
            chunk_length=1,
            execute_steps=1,
        )
    if (path / CONTRACT).is_file():
        return PolicyContract.load(path / CONTRACT)
    raise DatasetError(
        f"{path} has no {CONTRACT}, so that nothing says what its numbers mean: give contract=FILE (docs/lerobot.md "
        "shows one), robot= unit= gripper= where they are an arm's joint positions, or dataset=NAME where it is a "
        f"conversion of one of {', '.join(sorted(OXE))}"
    )
