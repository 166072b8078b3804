"""What `volar-convert` says at its end: what is there, what was left out, and which cameras will be of no use."""

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from volar.datasets.episode_writer import EpisodeWriter
from volar.datasets.lerobot_format import load_info, missing_cameras
from volar.datasets.rlds import Losses
from volar.robots.contract import PolicyContract
from volar.robots.spec import ROBOTS, load_robot


def report(writer: EpisodeWriter, losses: Losses, unlabelled: int, absent: Mapping[str, str]) -> None:
    """Prints what is there and what was left out in this run; `absent`: see `EpisodeSource`."""
    print(f"{writer.episodes} episodes in {writer.root}")
    for role, key in absent.items():
        print(f"camera {role} is not there: the source has no {key}")
    for camera, count in cameras_missing_in(load_info(writer.root).episodes).items():
        print(
            f"camera {camera} was missing in {count} of them: black, listed in the episode's info, masked in training"
        )
        if count == writer.episodes:
            print(f"  so nothing can be learned of {camera}: cameras=[...] with the others leaves it out")
    if unlabelled:
        print(f"{unlabelled} without an instruction were left out; instruction=TEXT keeps them")
    if losses.reasons:
        print(f"{losses.episodes} damaged episodes were left out:", file=sys.stderr)
        for reason in losses.reasons:
            print(f"  {reason}", file=sys.stderr)
    _say_strange_cameras(writer.contract)


def cameras_missing_in(episodes: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Camera -> how many of the episodes (rows of `meta/episodes`) have it black because their source lacks it."""
    return dict(sorted(Counter(name for row in episodes for name in missing_cameras(row)).items()))


def _say_strange_cameras(contract: PolicyContract) -> None:
    robot = contract.robot
    have = load_robot(robot).cameras if robot in ROBOTS else tuple(camera.name for camera in contract.cameras)
    for name in (camera.name for camera in contract.cameras if camera.name not in have):
        print(f"camera {name} is none of {robot}'s ({', '.join(have)}), which refuses a policy that looks through it")
        print("  cameras=THEIRS:OURS takes it under the name of one")
