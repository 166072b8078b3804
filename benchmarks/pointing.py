"""How far from the named block a policy points, when an episode begins: what it fails to see, it cannot reach.

python -P benchmarks/pointing.py vla/checkpoints/tiny runs/policy               under none and full, 100 scenes of lift
python -P benchmarks/pointing.py runs/policy --presets visual,runs/still.yaml   under others, as for randomization=
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from volar.robots.interface import Observation
from volar.robots.kinematics import Arm
from volar.robots.policies import find_policy
from volar.sim.closed_loop import world_for
from volar.sim.tasks.layout import NoLayout
from volar.vla.checkpoint_policy import load
from volar.vla.processor_volar import TorchPolicy

SCENES, FIRST_SEED, TASK = 100, 2**40, "lift"  # above the seeds of evaluations and demonstrations


@torch.inference_mode()
def errors_mm(policy: TorchPolicy, preset: str) -> NDArray[np.float64]:
    """Horizontal distances [mm] in the base frame, one a scene."""
    world = world_for(TASK, policy.contract.robot, policy.contract, preset, 0)
    arm, found = Arm(world.spec), []
    for seed in range(FIRST_SEED, FIRST_SEED + SCENES):
        try:
            world.reset(seed)
        except NoLayout:
            continue
        measured = world.body.joint_state()
        state = arm.proprio(measured.q, measured.gripper_width_m).astype(np.float32)
        seen = Observation(world.body.images(), state, world.instruction, 0)
        _, points = policy.graph(*policy.tensors(seen))
        found.append(1000 * np.linalg.norm(points[0, 0, :2].numpy() - world.points()[0, :2]))
    world.close()
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="*", default=["vla/checkpoints/tiny"])
    parser.add_argument("--presets", default="none,full")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'policy':32} {'preset':16} {'median':>7} {'90 %':>7} [mm] {'above 20 mm':>12}")
    for name in asked.policies:
        policy = load(find_policy(Path(name)))
        for preset in asked.presets.split(","):
            e = errors_mm(policy, preset)
            far = (e > 20).mean()
            print(f"{name:32} {preset:16} {np.median(e):7.1f} {np.quantile(e, 0.9):7.1f}      {far:11.0%}")


if __name__ == "__main__":
    main()
