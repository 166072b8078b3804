"""The controller node against the simulated arm, both on the machine's own time: period, and camera stamp to command.

    python -P benchmarks/ros2.py ARTIFACT [--seconds 60] [--compressed] [--image-size 96]

The twin stamps an image at the beginning of the period in which it renders it; the time ends with the first command
that answers it.
"""

import argparse
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from volar.robots.control_loop import TickReport


class Collector:
    """What every tick says, kept for the end."""

    def __init__(self) -> None:
        self.ticks_s: list[float] = []
        self.latency_s: list[float] = []
        self.held = 0

    def __call__(self, report: TickReport) -> None:
        self.ticks_s.append(time.monotonic())
        self.held += report.reason is not None
        if report.chunk is not None and report.refused is None:
            self.latency_s.append((report.stamp_ns - report.chunk.stamp_ns) / 1e9)


def measure(options: argparse.Namespace) -> Collector:
    import rclpy

    from volar.robots.ros2.controller_node import SUCCESS, ControllerNode
    from volar.robots.ros2.spinning import Spinning

    domain = 1 + secrets.randbelow(100)
    os.environ |= {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": str(domain)}
    words = [f"task={options.task}", "sim_time=false", f"image_size={options.image_size}", "reflex=false"]
    words += ["compressed=true"] if options.compressed else []
    twin = subprocess.Popen([sys.executable, "-m", "volar.sim.ros2_robot", *words], stdout=subprocess.DEVNULL)
    transport = "compressed" if options.compressed else "raw"
    settings = {"policy": options.artifact, "instruction": "lift the red block", "image_transport": transport}
    arguments = [word for name, value in settings.items() for word in ("-p", f"{name}:={value}")]
    rclpy.init(args=["benchmark", "--ros-args", *arguments])
    collector = Collector()
    node = ControllerNode(on_tick=collector)
    try:
        with Spinning(node):
            assert node.trigger_configure() == SUCCESS, node.failure
            assert node.trigger_activate() == SUCCESS, node.failure
            while node.thread is None or not node.thread.started:
                time.sleep(0.1)
            threading.Event().wait(options.seconds)
            node.trigger_deactivate()
    finally:
        twin.send_signal(signal.SIGTERM)
        twin.wait()
        node.inputs.destroy_node()
        node.destroy_node()
        rclpy.try_shutdown()
    return collector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, nargs="?", help="what volar-export left")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--task", default="lift")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--compressed", action="store_true")
    options = parser.parse_args()
    if options.artifact is None:  # as `make bench` starts it
        print("give an artifact: volar-export output=runs/artifact, then benchmarks/ros2.py runs/artifact")
        return
    found = measure(options)
    period_error_ms = 1e3 * np.abs(np.diff(found.ticks_s) - 0.01)
    table = Table(
        title=f"controller node, {len(found.ticks_s)} ticks, {len(found.latency_s)} chunks, held {found.held}"
    )
    for column in ("", "p50", "p99", "p99.9", "max"):
        table.add_column(column, justify="right" if column else "left")
    for name, values in (
        ("period error [ms]", period_error_ms),
        ("camera stamp to command [ms]", 1e3 * np.array(found.latency_s)),
    ):
        numbers = (*np.percentile(values, [50, 99, 99.9]), values.max())
        table.add_row(name, *(f"{number:.2f}" for number in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
