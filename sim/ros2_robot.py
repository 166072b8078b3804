"""volar-sim-robot: the simulated arm behind the topics of a real one; a digital twin for any ROS 2 controller.

Publishes joint_states, <camera>/image_raw (and /compressed), <camera>/camera_info and /clock; takes a JointTrajectory
or a Float64MultiArray of positions, and a gripper's width. Like a real arm it stops by itself when a command breaks its
limits, until ~/recover is called. ~/reset starts the next scene, the parameter seed
any other; ~/state says (JSON) which it is, whether the task is done, and what is wrong with the commands.
"""

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from volar.robots.command_line import run
from volar.robots.errors import Unknown
from volar.robots.spec import ROBOTS

if TYPE_CHECKING:
    from volar.sim.world import TaskWorld

EXAMPLES = (
    "volar-sim-robot task=lift",
    "volar-sim-robot task=open_drawer robot=ur5e seed=3 camera_hz=10 image_size=128",
    "volar-sim-robot task=lift compressed=true --ros-args -r __ns:=/left",
)


@dataclass(frozen=True)
class SimRobotConfig:
    """Settings of `volar-sim-robot`."""

    task: str = field(default="lift", metadata={"help": "what stands on the table"})
    robot: str = field(default="fr3", metadata={"help": f"the arm: {', '.join(ROBOTS)}"})
    asset: str | None = field(default=None, metadata={"help": "menagerie:PATH, your own MJCF model of that robot"})
    seed: int = field(default=0, metadata={"help": "of the first scene; ~/reset goes on to the next"})
    randomization: str = field(default="none", metadata={"help": "what varies beyond the layout: a preset or a .yaml"})
    camera_hz: float = field(default=25.0, metadata={"help": "images a second; divides 100"})
    image_size: int = field(default=96, metadata={"help": "width and height of the images [pixels]"})
    compressed: bool = field(default=False, metadata={"help": "JPEG on <camera>/image_raw/compressed as well"})
    speed: float = field(default=1.0, metadata={"help": "of the simulation against the wall's clock"})
    reflex: bool = field(default=True, metadata={"help": "stop at a command that breaks the arm's limits"})
    sim_time: bool = field(default=True, metadata={"help": "publish /clock; false: stamp with the machine's own time"})
    duration_s: float | None = field(
        default=None, metadata={"help": "simulated time after which it ends; by default never"}
    )

    def __post_init__(self) -> None:
        if self.robot not in ROBOTS:
            raise Unknown("robot", self.robot, ROBOTS)
        if self.seed < 0 or self.image_size < 8:
            raise ValueError(f"seed={self.seed} must be at least 0, image_size={self.image_size} at least 8")
        if not self.speed > 0 or (self.speed != 1.0 and not self.sim_time):
            raise ValueError(f"speed={self.speed:g} must be positive, and 1 without sim_time")
        if self.duration_s is not None and not self.duration_s > 0:
            raise ValueError(f"duration_s={self.duration_s:g} must be positive")
        if not 0 < self.camera_hz <= 100 or 100 % self.camera_hz:
            raise ValueError(f"camera_hz={self.camera_hz:g} must divide 100: 10, 20, 25, 50, 100")


def make_world(config: SimRobotConfig) -> "TaskWorld":
    """The scene, reset. Raises `Unknown` for a task or randomization that does not exist."""
    from volar.robots.spec import robot_name
    from volar.sim.world import TaskWorld

    model = robot_name(config.robot, config.asset)
    world = TaskWorld(config.task, model, image_size=config.image_size, randomization=config.randomization)
    world.reset(config.seed)
    return world


def serve(config: SimRobotConfig, ros_arguments: list[str]) -> None:
    """Runs the arm in real time until Ctrl-C, SIGTERM or `duration_s`."""
    import signal
    import threading

    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from volar.robots.real_time import Pacer
    from volar.sim.ros2_twin import Twin
    from volar.sim.sim_robot import SimulationDiverged
    from volar.sim.world import CONTROL_PERIOD_S

    world = make_world(config)
    rclpy.init(args=["volar-sim-robot", *ros_arguments], signal_handler_options=SignalHandlerOptions.NO)
    stop, periods = threading.Event(), 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    twin = Twin(world, config.camera_hz, config.compressed, config.reflex, config.sim_time)
    pacer = Pacer(round(CONTROL_PERIOD_S * 1e9 / config.speed))
    print(f"{config.robot} before the task {config.task}: {world.instruction!r}", flush=True)
    try:
        with twin:
            pacer.start()
            while not stop.is_set() and (config.duration_s is None or periods * CONTROL_PERIOD_S < config.duration_s):
                periods += 1
                pacer.wait()
                twin.begin_period()
                if config.sim_time and twin.commanded:
                    twin.await_command()
                try:
                    twin.end_period()
                except SimulationDiverged as error:
                    twin.skip_scene(world.seed, error)
    finally:
        world.close()
        rclpy.try_shutdown()


def main() -> int:
    arguments: list[str] = sys.argv[1:]
    cut = arguments.index("--ros-args") if "--ros-args" in arguments else len(arguments)
    ros_arguments = arguments[cut:]
    sys.argv[1:] = arguments[:cut]

    def run_robot(config: SimRobotConfig) -> Any:
        try:
            import rclpy  # noqa: F401
        except ImportError as error:
            from volar.robots.errors import VolarError

            raise VolarError("ROS 2 is not installed here: pip install 'volar[ros2]'") from error
        serve(config, ros_arguments)

    return run("volar-sim-robot", SimRobotConfig, run_robot, doc=__doc__, examples=EXAMPLES)


if __name__ == "__main__":
    raise SystemExit(main())
