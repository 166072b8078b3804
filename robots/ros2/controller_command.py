"""volar-controller: the controller node as a command; its help needs no ROS 2."""

import difflib
import sys
import textwrap
from dataclasses import fields
from typing import Final

from volar.robots.ros2.parameters import NodeSettings

USAGE: Final = """usage: volar-controller --ros-args [-p PARAMETER:=VALUE ...] [-r FROM:=TO ...] [--params-file FILE]

An exported policy moves an arm through its ROS 2 topics, as the lifecycle node volar_controller.

examples:
    volar-controller --ros-args -p policy:=runs/artifact -p robot:=fr3 -p instruction:="lift the red block"
    ros2 lifecycle set /volar_controller configure && ros2 lifecycle set /volar_controller activate
    ros2 service call /volar_controller/stop std_srvs/srv/Trigger
    ros2 topic pub --once /volar_controller/instruction std_msgs/msg/String "{data: lift the blue block}"

Parameters, besides use_sim_time and cameras.NAME.topic:
"""


def help_text() -> str:
    """What `--help` prints: the usage, then each parameter with its default, meaning and range."""
    lines = [USAGE]
    for item in fields(NodeSettings):
        allowed = item.metadata["range"]
        about = item.metadata["help"] + ("" if allowed is None else f" ({allowed[0]:g} to {allowed[1]:g})")
        default = str(item.default).lower() if isinstance(item.default, bool) else item.default
        lines += [f"  {item.name}:={default}", textwrap.fill(about, 100, initial_indent=" " * 8)]
    return "\n".join(lines)


def refusal(words: list[str]) -> str:
    """Why words before `--ros-args` are refused, or an empty string; the other verbs' settings are parameters here."""
    for word in words[: words.index("--ros-args")] if "--ros-args" in words else words:
        name, _, value = word.partition("=")
        near = difflib.get_close_matches(name, [item.name for item in fields(NodeSettings)], n=1, cutoff=0.5)
        wanted = near[0] if near else "PARAMETER"
        hint = f"volar-controller --ros-args -p {wanted}:={value or 'VALUE'}"
        return f"unknown setting {name!r}; parameters of the node follow --ros-args: {hint}"
    return ""


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(help_text())
        return 0
    if wrong := refusal(sys.argv[1:]):
        print(f"volar-controller: error: {wrong}", file=sys.stderr)
        return 2
    try:
        from volar.robots.ros2.controller_node import main as run_node
    except ImportError as error:
        print(f"volar-controller: ROS 2 is not installed here ({error}): pip install 'volar[ros2]'", file=sys.stderr)
        return 1
    return run_node()


if __name__ == "__main__":
    raise SystemExit(main())
