"""`volar-doctor`: what this machine can do, and what to do about what it cannot.

With an artifact, also loads it, checks its hashes and contract and replays its golden set. With robot=ros2/..., also
listens to the robot's topics: do they come as often, and in the size, as the policy wants? Exit code 1 when something
that Volar needs does not work or a topic is silent; a GPU and ROS 2 are optional.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from volar.robots.artifact_runtime import PROVIDER_VARIABLE
from volar.robots.command_line import run
from volar.robots.errors import UsageError, VolarError
from volar.robots.usable_cpus import usable_cpus

Status = Literal["ok", "optional", "broken"]

TIMER_HZ = 100.0  # the control loop's rate
TIMER_P99_MS = 2.0  # the control loop's target for its period error
MAX_LISTENING_S = 600.0
ROS2 = "ros2/"
FREE_GIB = 5.0  # a demo's data set, checkpoints and caches
MEMORY_GIB = 4.0  # training the tiny model beside a rendering process
EXAMPLES = (
    "volar-doctor",
    "volar-doctor runs/demo/artifact",
    "volar-doctor robot=ros2/fr3 runs/demo/artifact seconds=10",
    "volar-doctor robot=ros2/fr3 --ros-args -r front/image_raw:=/camera/color/image_raw",
)

# Rendering happens in a process of its own: a broken driver may abort the process, not raise. The rates are those of
# one simulated camera that sees the FR3 on a floor, with the simulator's quality; its scenes hold more and take longer.
_RENDER = """
import os, time
os.environ.setdefault("MUJOCO_GL", "egl")
import mujoco
from volar.robots.fr3 import add_to
spec = mujoco.MjSpec()
spec.worldbody.add_light(pos=[0, 0, 2])
spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[3, 3, 0.1])
add_to(spec)
spec.visual.quality.shadowsize = spec.visual.quality.offsamples = 0
spec.visual.global_.offwidth = spec.visual.global_.offheight = 512
model = spec.compile()
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
rates = []
for size in (96, 512):
    renderer = mujoco.Renderer(model, size, size)
    times = []
    while len(times) < 5 or sum(times) < 0.3 and len(times) < 100:
        start = time.perf_counter()
        renderer.update_scene(data)
        image = renderer.render()
        times.append(time.perf_counter() - start)
    assert image.max() > 50 and image.std() > 1, "the frame is empty"
    rates.append(f"{1 / sorted(times)[len(times) // 2]:.0f} frames/s at {size}x{size}")
    from OpenGL import GL
    driver = GL.glGetString(GL.GL_RENDERER).decode()
    renderer.close()
print(driver, "through", os.environ["MUJOCO_GL"] + ",", ", ".join(rates), flush=True)
os._exit(0)  # OpenGL's finalizers complain at exit
"""


@dataclass(frozen=True)
class Check:
    """One line of the report. `fix`: what to do, where `status` is not `ok`."""

    name: str
    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True)
class DoctorConfig:
    artifact: Path | None = field(default=None, metadata={"help": "an exported artifact to load and verify"})
    robot: str | None = field(default=None, metadata={"help": "ros2/fr3, ros2/ur5e, ros2/so101: listen to its topics"})
    seconds: float = field(default=3.0, metadata={"help": "how long to listen to the robot's topics"})
    timer_seconds: float = field(default=1.0, metadata={"help": "how long to measure the timer; 0 leaves it out"})

    def __post_init__(self) -> None:
        if self.timer_seconds < 0:
            raise ValueError(f"timer_seconds={self.timer_seconds} must not be negative")
        if not 0 < self.seconds <= MAX_LISTENING_S:
            raise ValueError(f"seconds={self.seconds:g} must be above 0, and {MAX_LISTENING_S:g} at most")
        if self.robot is not None and not self.robot.startswith(ROS2):
            raise UsageError(f"robot={self.robot}: only a robot behind ROS 2 has topics: robot=ros2/fr3, for one")


def check_python() -> Check:
    version = platform.python_version()
    if sys.version_info[:2] == (3, 12):
        return Check("Python", "ok", f"{version} on {platform.system()} {platform.machine()}")
    return Check("Python", "broken", version, "make the environment with python3.12")


def check_cores_and_memory() -> Check:
    cores = usable_cpus()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = f"{cores} cores, {memory_gib:.0f} GiB"
    if cores < 2:
        return Check("cores, memory", "optional", found, "two cores keep the policy from delaying the control loop")
    if memory_gib < MEMORY_GIB:
        return Check("cores, memory", "optional", found, f"training wants {MEMORY_GIB:.0f} GiB; lower batch_size")
    return Check("cores, memory", "ok", found)


def check_torch() -> Check:
    # In a process of its own: importing torch takes seconds, and a broken CUDA installation can abort.
    code = (
        "import torch; c = torch.cuda.is_available(); "
        "print(torch.__version__, '|', torch.cuda.get_device_name(0) if c else '')"
    )
    ok, said = _python(code)
    if not ok:
        return Check("torch", "broken", said, "make setup, or pip install volar again: torch does not import")
    version, _, device = said.partition("|")
    if device.strip():
        return Check("torch", "ok", f"{version.strip()} on {device.strip()}")
    return Check("torch", "optional", f"{version.strip()}, no GPU", "the tiny model needs none; larger backbones do")


def check_renderer() -> Check:
    from volar.robots.graphics import FIX, unused_gpu

    ok, said = _python(_RENDER)
    if ok and (gpu := unused_gpu(said)):
        return Check("renderer", "optional", f"{said}, in software beside a GPU at {gpu}", FIX)
    if ok:
        return Check("renderer", "ok", said)
    fix = "apt-get install -y libegl1 libopengl0 libgl1-mesa-dri (or MUJOCO_GL=osmesa with libosmesa6)"
    return Check("renderer", "broken", said, fix)


def check_ros2() -> Check:
    if importlib.util.find_spec("rclpy") is None:
        return Check("ROS 2", "optional", "rclpy is not installed", "pip install 'volar[ros2]' to drive a real arm")
    ok, said = _python("import rclpy; from std_msgs.msg import String; print('rclpy imports')")
    if ok:
        return Check("ROS 2", "ok", f"rclpy {_version('ros-rclpy', 'rclpy')}")
    return Check("ROS 2", "optional", said, "pip install 'volar[ros2]' again: rclpy does not import")


def check_onnxruntime() -> Check:
    ok, said = _python("from volar.robots.artifact_runtime import describe; print(describe())")
    if ok:
        return Check("onnxruntime", "ok", said)
    fix = "unset it, or name one that is there" if PROVIDER_VARIABLE in said else "pip install onnxruntime"
    return Check("onnxruntime", "broken", said, fix)


def check_lerobot() -> Check:
    version = _version("lerobot")
    if version and version.split(".")[:2] == ["0", "6"]:
        return Check("LeRobot", "ok", version)
    return Check("LeRobot", "broken", version or "not installed", "pip install 'lerobot[dataset]>=0.6,<0.7'")


def check_disk() -> Check:
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    found = f"{free_gib:.0f} GiB free here"
    if free_gib >= FREE_GIB:
        return Check("disk", "ok", found)
    return Check("disk", "optional", found, f"a demonstration data set wants up to {FREE_GIB:.0f} GiB: free some")


def check_timer(seconds: float) -> Check:
    """How late this machine wakes a process that sleeps until the next period of the control loop."""
    errors_ms = timer_errors_ms(round(seconds * TIMER_HZ), time.perf_counter, time.sleep)
    p99 = float(np.percentile(errors_ms, 99))
    found = f"p99 {p99:.2f} ms, worst {errors_ms.max():.2f} ms late at {TIMER_HZ:.0f} Hz"
    if p99 <= TIMER_P99_MS:
        return Check("timer", "ok", found)
    return Check("timer", "optional", found, "close other programs, or use a low-latency or real-time kernel")


def timer_errors_ms(ticks: int, now: Callable[[], float], sleep: Callable[[float], None]) -> NDArray[np.float64]:
    """Lateness [ms] of `ticks` wake-ups on a fixed grid of 1 / `TIMER_HZ`, (ticks,)."""
    start = now()
    late = np.empty(max(ticks, 1))
    for i in range(len(late)):
        due = start + (i + 1) / TIMER_HZ
        sleep(max(0.0, due - now()))
        late[i] = (now() - due) * 1e3
    return late


def check_artifact(path: Path) -> Check:
    """Loads the artifact (which checks hashes and contract) and replays its golden set."""
    from volar.robots.policy_source import artifact_folder

    try:
        from volar.robots.exported_policy import ExportedPolicy

        contract = ExportedPolicy(artifact_folder(str(path))).contract
    except (VolarError, ImportError) as error:
        return Check("artifact", "broken", str(error), "export again: volar-export policy=DIR output=ARTIFACT")
    size = f"robot {contract.robot}, {contract.chunk_length} steps at {contract.action.rate_hz:g} Hz"
    return Check("artifact", "ok", f"verified: {size}, contract {contract.sha256[:12]}")


def check_robot(config: DoctorConfig, ros_arguments: Sequence[str] = ()) -> list[Check]:
    """The topics of `config.robot`, as the artifact's contract wants them, if there is one."""
    from volar.robots.policies import find_policy, read_contract
    from volar.robots.spec import load_robot

    if config.robot is None:
        return []
    spec, contract = load_robot(config.robot.removeprefix(ROS2)), None
    if config.artifact is not None:
        contract = read_contract(find_policy(config.artifact))
        if contract.robot != spec.name:
            raise UsageError(f"robot={config.robot}: the artifact is for {contract.robot}; robot=ros2/{contract.robot}")
    try:
        from volar.robots.ros2.topic_rates import check_topics
    except ImportError as error:
        return [Check("topics", "broken", f"ROS 2 is not installed here ({error})", "pip install 'volar[ros2]'")]
    return check_topics(spec, contract, config.seconds, ros_arguments)


def checks(config: DoctorConfig) -> list[Callable[[], Check]]:
    """What to look at, quick things first."""
    found: list[Callable[[], Check]] = [check_python, check_cores_and_memory, check_disk, check_lerobot]
    if config.timer_seconds > 0:
        found.append(lambda: check_timer(config.timer_seconds))
    found += [check_renderer, check_onnxruntime, check_torch, check_ros2]
    if (artifact := config.artifact) is not None:
        found.append(lambda: check_artifact(artifact))
    return found


def examine(config: DoctorConfig, ros_arguments: Sequence[str] = ()) -> int:
    """Prints the table; returns 1 if something needed is broken, else 0. `ros_arguments`: from `--ros-args` on.

    Raises `VolarError` for a path without an artifact, and for a robot that nobody knows or that is not the artifact's.
    """
    from rich.console import Console
    from rich.table import Table

    from volar.robots.policy_source import artifact_folder

    if config.artifact is not None:
        artifact_folder(str(config.artifact))  # a wrong path is said before anything is measured
    console = Console()
    results: list[Check] = []
    with console.status("listening to the robot"):
        topics = check_robot(config, ros_arguments)
    with console.status("looking at this machine"):
        for check in checks(config):
            results.append(check())
    results += topics
    table = Table(title="volar-doctor", title_justify="left", show_lines=False)
    for column in ("", "what", "found", "to do"):
        table.add_column(column, overflow="fold")
    marks = {"ok": "[green]ok[/]", "optional": "[yellow]note[/]", "broken": "[red]broken[/]"}
    for item in results:
        table.add_row(marks[item.status], item.name, _markup(item.found), _markup(item.fix))
    console.print(table)
    broken = [item.name for item in results if item.status == "broken"]
    console.print(f"broken: {', '.join(broken)}" if broken else "everything that Volar needs works here")
    return 1 if broken else 0


def _markup(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _version(*names: str) -> str:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _python(code: str, timeout_s: float = 120.0) -> tuple[bool, str]:
    """Runs code in a fresh interpreter: whether it worked, and the last line it said."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {timeout_s:.0f} s"
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    if done.returncode == 0:
        return True, said[-1] if said else ""
    # Finalizers of a broken GL context complain after the error itself: take the last line that names one.
    errors = [line.strip() for line in said if "Error" in line and not line.startswith(" ")]
    return False, errors[0] if errors else (said[-1] if said else f"exit code {done.returncode}")


def main() -> int:
    words = sys.argv[1:]
    cut = words.index("--ros-args") if "--ros-args" in words else len(words)

    def examine_it(config: DoctorConfig) -> int:
        if words[cut:] and config.robot is None:
            raise UsageError("--ros-args is for robot=ros2/...")
        return examine(config, words[cut:])

    return run(
        "volar-doctor",
        DoctorConfig,
        examine_it,
        doc=__doc__,
        examples=EXAMPLES,
        positional=("artifact",),
        argv=words[:cut],
    )


if __name__ == "__main__":
    sys.exit(main())
