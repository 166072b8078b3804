"""HDF5 in the layout of robomimic, which LIBERO and MimicGen share, as a source of episodes.

    data (attributes: env_args, problem_info, ...)
      demo_0  actions (T, 7), dones (T,), obs/{cameras uint8 (T, H, W, 3), ee or robot0 vectors}

Actions are inputs of robosuite's OSC_POSE in [-1, 1], the gripper's +1 closes. LIBERO keeps its images as its renderer
makes them, upside down and mirrored; they are turned by half a circle, as OpenVLA's RLDS version of LIBERO has them.
Robot, controller and rate are those of `env_args`, where a file has them: robosuite's `env_kwargs`.
Sources: robomimic's documentation, "Dataset structure"; Lifelong-Robot-Learning/LIBERO scripts/create_dataset.py.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volar.datasets.episode_source import Numbers, SourceEpisode, chosen_cameras
from volar.datasets.lerobot_layout import ROWS, DatasetError
from volar.datasets.oxe_entry import FRANKA, Named, axis_angle, delta, inverted, position, quaternion, stacked
from volar.datasets.rlds import Losses, OnError
from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.errors import Unknown

RATE_HZ = 20  # robosuite's default
# What actions are read as; with `input_type`, robosuite 1.5 says `control_delta`.
SETUP: dict[str, Any] = {"robots": ["Panda"], "type": "OSC_POSE", "control_delta": True, "input_type": "delta"}
_FINGERS: Named = (("finger_1", "m"), ("finger_2", "m"))


@dataclass(frozen=True)
class Hdf5Layout:
    """`state`: keys below `obs`, side by side; `cameras`: role -> key below `obs`; `turned`: by half a circle."""

    cameras: dict[str, str]
    state: tuple[str, ...]
    names: Named
    turned: bool


LAYOUTS = {
    "libero": Hdf5Layout(
        {"primary": "agentview_rgb", "wrist": "eye_in_hand_rgb"},
        ("ee_pos", "ee_ori", "gripper_states"),
        position() + axis_angle() + _FINGERS,
        turned=True,
    ),
    "robomimic": Hdf5Layout(
        {"primary": "agentview_image", "wrist": "robot0_eye_in_hand_image"},
        ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"),
        position() + quaternion() + _FINGERS,
        turned=False,
    ),
}


@dataclass(frozen=True)
class Hdf5Source:
    """One file, or the files of a folder in the order of their names. `cameras`: name to be written -> role."""

    files: tuple[Path, ...]
    layout: Hdf5Layout
    cameras: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def open(path: Path, name: str | None, cameras: Sequence[str] = ()) -> "Hdf5Source":
        """`name`: a layout, found by the keys when None. Raises `DatasetError`, `Unknown`."""
        files = [path] if path.is_file() else sorted([*path.glob("*.hdf5"), *path.glob("*.h5")])
        if not files:
            raise DatasetError(f"{path} is no HDF5 file and holds none (*.hdf5, *.h5)")
        if name is not None and name not in LAYOUTS:
            raise Unknown("dataset", name, LAYOUTS)
        first = _first_whole(files)
        with _opened(first) as file:
            keys = _demos(file, first)
            found = set(map(str, file[f"data/{keys[0]}"].get("obs", ())))
        fitting = [layout for layout in LAYOUTS.values() if set(layout.state) <= found]
        if name is None and not fitting:
            said = ", ".join(sorted(found)) or "none"
            raise DatasetError(f"{first} is neither of robomimic nor of LIBERO (observations: {said})")
        source = Hdf5Source(tuple(files), LAYOUTS[name] if name else fitting[0])
        if not source.available:
            wanted, there = ", ".join(source.absent.values()), ", ".join(sorted(found)) or "none"
            raise DatasetError(f"{first} has none of the cameras {wanted} (its observations: {there})")
        roles = {role: key for role, (key, _, _) in source.available.items()}
        return replace(source, cameras=chosen_cameras(cameras, roles))

    @cached_property
    def available(self) -> dict[str, tuple[str, int, int]]:
        """Role -> (key, width, height), of the cameras that the first demonstration has."""
        first = _first_whole(self.files)
        with _opened(first) as file:
            demo = _demos(file, first)[0]
            obs = file[f"data/{demo}"].get("obs", {})
            if not set(self.layout.state) <= set(obs):
                wanted, said = ", ".join(self.layout.state), ", ".join(sorted(obs)) or "none"
                raise DatasetError(f"{first}: the observations of {demo} must have {wanted} (there are: {said})")
            there = {role: key for role, key in self.layout.cameras.items() if key in obs}
            return {role: (key, obs[key].shape[2], obs[key].shape[1]) for role, key in there.items()}

    @property
    def absent(self) -> dict[str, str]:
        return {role: key for role, key in self.layout.cameras.items() if role not in self.available}

    @property
    def chosen(self) -> dict[str, tuple[str, int, int]]:
        """Name to be written -> (key, width, height)."""
        return {name: self.available[role] for name, role in self.cameras.items()}

    @cached_property
    def total(self) -> int:
        count = 0
        for path in self.files:
            with suppress(DatasetError), _opened(path) as file:  # `episodes` says what is wrong
                count += len(_demos(file, path))
        return count

    @cached_property
    def about(self) -> Mapping[str, str]:
        sizes = [(path.name, path.stat().st_size) for path in self.files]
        return {"fingerprint": hashlib.sha256(json.dumps(sizes).encode()).hexdigest()}

    @cached_property
    def contract(self) -> PolicyContract:
        cameras = tuple(CameraSpec(name, width, height) for name, (_, width, height) in self.chosen.items())
        names = self.layout.names
        return PolicyContract(
            robot=FRANKA,
            action=delta(self._rate_hz, unit="controller", rotation="rotation_vector"),
            state_names=tuple(name for name, _ in names),
            state_units=tuple(unit for _, unit in names),
            cameras=cameras,
            chunk_length=1,
            execute_steps=1,
        )

    @cached_property
    def _rate_hz(self) -> int:
        """Raises `DatasetError` where a file is of another robot, controller or rate than the others."""
        rates: dict[int, Path] = {}
        for path in self.files:
            try:
                with _opened(path) as file:
                    about = _attributes(file, "env_args")
            except DatasetError:  # `episodes` says what is wrong
                continue
            rates.setdefault(_checked_rate_hz(about, path), path)
        if len(rates) > 1:
            said = ", ".join(f"{path.name} {rate}" for rate, path in rates.items())
            raise DatasetError(f"the files differ in control_freq ({said}): convert them one by one")
        return next(iter(rates), RATE_HZ)

    def episodes(self, start: tuple[int, int], on_error: OnError, losses: Losses) -> Iterator[SourceEpisode]:
        for number in range(start[0], len(self.files)):
            path = self.files[number]
            try:
                with _opened(path) as file:
                    demos, about = _demos(file, path), _attributes(file, "problem_info", "env_args")
            except DatasetError as error:
                if on_error == "raise":
                    raise
                losses.add(1, f"{error} (all of its episodes lost, counted as one)")
                continue
            for k in range(start[1] if number == start[0] else 0, len(demos)):
                where = f"{path.name}: {demos[k]}"
                numbers = lambda p=path, d=demos[k], a=about: self._numbers(p, d, a)  # noqa: E731
                images = lambda p=path, d=demos[k]: self._images(p, d)  # noqa: E731
                yield SourceEpisode((number, k), where, numbers, images)

    def _numbers(self, path: Path, demo: str, about: dict[str, Any]) -> Numbers:
        actions = _read(path, demo, "actions")
        if not len(actions):
            raise DatasetError(f"{path}: {demo} has no steps")
        state = stacked(*(_read(path, demo, f"obs/{key}") for key in self.layout.state))
        if actions.shape[1:] != (7,) or state.shape[1:] != (len(self.layout.names),) or len(state) != len(actions):
            raise DatasetError(f"{path}: {demo} has actions {actions.shape} and states {state.shape}")
        text = about.get("language_instruction", "")
        text = " ".join(text) if isinstance(text, list) else str(text)
        task = str(about.get("env_name") or path.stem.removesuffix("_demo"))
        moves = stacked(actions[:, :6], inverted(actions[:, 6]))
        facts = {"file": path.name, "demo": demo}
        return Numbers(state, moves, text.strip().strip('"'), facts=facts, task=task)

    def _images(self, path: Path, demo: str) -> dict[str, Iterable[NDArray[np.uint8]]]:
        with _opened(path) as file:
            there = set(file[f"data/{demo}"].get("obs", ()))
        keys = {name: key for name, (key, _, _) in self.chosen.items() if key in there}
        return {name: self._frames(path, demo, f"obs/{key}") for name, key in keys.items()}

    def _frames(self, path: Path, demo: str, key: str) -> Iterator[NDArray[np.uint8]]:
        with _opened(path) as file:
            stored = file[f"data/{demo}/{key}"]
            if stored.dtype != np.uint8 or stored.ndim != 4:
                raise DatasetError(f"{path}: {demo}/{key} is {stored.dtype} {stored.shape}, not images")
            for start in range(0, len(stored), ROWS):
                images = stored[start : start + ROWS]
                yield from (np.ascontiguousarray(images[:, ::-1, ::-1]) if self.layout.turned else images)


def _first_whole(files: Sequence[Path]) -> Path:
    """The first file whose demonstrations can be listed; without one, the first, whose error says why."""
    for path in files:
        with suppress(DatasetError), _opened(path) as file:
            _demos(file, path)
            return path
    return files[0]


def _checked_rate_hz(about: dict[str, Any], path: Path) -> int:
    """Of a file's `env_args`. Raises `DatasetError` where its actions are not those of `SETUP`."""
    try:
        said = about.get("env_kwargs") or {}
        controller = said.get("controller_configs") or {}
        controller = controller.get("body_parts", {}).get("right", controller)  # robosuite 1.5
        robots, rate = said.get("robots", SETUP["robots"]), said.get("control_freq", RATE_HZ)
        found = controller | {"robots": [robots] if isinstance(robots, str) else robots}
        others = [key for key, value in SETUP.items() if found.get(key, value) != value]
        wrong = [f"{key} is {found[key]!r}, not {SETUP[key]!r}" for key in others]
        wrong += [] if int(rate) == rate else [f"control_freq is {rate!r}, no whole number"]
    except (AttributeError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: env_args is of another form than robosuite's: {error}") from error
    if wrong:
        raise DatasetError(f"{path} cannot be read as a {FRANKA}'s displacements: {'; '.join(wrong)}")
    return int(rate)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file. What h5py says of damage, in many kinds of errors, is a `DatasetError` that names the file."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        said = error.args[0] if error.args else type(error).__name__
        raise DatasetError(f"{path} cannot be read, it is cut, damaged or no HDF5 file: {said}") from error


def _demos(file: Any, path: Path) -> list[str]:
    """The demonstrations in the order of their numbers. Raises `DatasetError` when there is none."""
    names = [name for name in file.get("data", ()) if name.startswith("demo")]
    if not names:
        raise DatasetError(f"{path} has no data/demo_*: not of robomimic's layout")
    return sorted(names, key=lambda name: (int(name.rpartition("_")[2]) if name[-1].isdigit() else -1, name))


def _read(path: Path, demo: str, key: str) -> NDArray[Any]:
    with _opened(path) as file:
        group = file[f"data/{demo}"]
        if key not in group:
            raise DatasetError(f"{path}: {demo} lacks {key} (it has {', '.join(sorted(group))})")
        array: NDArray[Any] = np.asarray(group[key])
        return array


def _attributes(file: Any, *names: str) -> dict[str, Any]:
    """The JSON attributes of `data`, together; the first named wins. Raises `DatasetError` for other texts."""
    found: dict[str, Any] = {}
    for name in reversed(names):
        try:
            raw = json.loads(file["data"].attrs.get(name, "{}"))
        except ValueError as error:
            raise DatasetError(f"{file.filename}: the attribute {name} of data is no JSON: {error}") from error
        found |= raw if isinstance(raw, dict) else {}
    return found
