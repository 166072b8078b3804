"""How far from the named block a policy points, when an episode begins: what it fails to see, it cannot reach.

python -P benchmarks/pointing.py vla/checkpoints/tiny runs/policy               under none and full, 100 scenes of lift
python -P benchmarks/pointing.py runs/grounding                                 a grounding stage, before any action
python -P benchmarks/pointing.py runs/policy --presets visual,runs/still.yaml   under others, as for randomization=
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from volar.robots.kinematics import Arm
from volar.robots.policies import find_policy
from volar.sim.closed_loop import world_for
from volar.sim.tasks.layout import NoLayout
from volar.vla.checkpoint_policy import load_parts
from volar.vla.modeling_volar import pixels_from_images
from volar.vla.processor_volar import StateScaler

SCENES, FIRST_SEED, TASK = 100, 2**40, "lift"  # above the seeds of evaluations and demonstrations


@torch.inference_mode()
def errors(folder: Path, preset: str) -> NDArray[np.float64]:
    """(scenes, 2): horizontal distance of the named block [mm] in the base frame; of the hand in the image [pixels],
    NaN for a policy that does not look for it."""
    model, contract, tokenizer = load_parts(folder)
    world, scale = world_for(TASK, contract.robot, contract, preset, 0), StateScaler(contract)
    arm, found = Arm(world.spec), []
    for seed in range(FIRST_SEED, FIRST_SEED + SCENES):
        try:
            world.reset(seed)
        except NoLayout:
            continue
        measured = world.body.joint_state()
        state = torch.tensor(arm.proprio(measured.q, measured.gripper_width_m), dtype=torch.float32)[None]
        images = world.body.images()
        size = images[contract.cameras[0].name].shape[0]
        views = {name: torch.tensor(image)[None] for name, image in images.items()}
        pixels = pixels_from_images(views, model.config.backbone)
        ids = torch.tensor(tokenizer.encode([contract.instruction_template.format(instruction=world.instruction)]))
        _, pointing = model.decode(pixels, ids, scale(state))
        block = 1000 * np.linalg.norm(pointing.points[0, 0, :2].numpy() - world.points()[0, :2])
        hand = np.nan
        if model.config.finds_hand:
            seen = world.view().camera.project(world.table.to_base(world.state.tcp[None]))[0]
            hand = size * np.linalg.norm(pointing.points_uv[0, 2].numpy() - seen)
        found.append((block, hand))
    world.close()
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="*", default=["vla/checkpoints/tiny"])
    parser.add_argument("--presets", default="none,full")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'policy':32} {'preset':16} {'median':>7} {'90 %':>7} [mm] {'above 20 mm':>12} {'hand':>7} [pixels]")
    for name in asked.policies:
        for preset in asked.presets.split(","):
            e, hand = errors(find_policy(Path(name)), preset).T
            block = f"{np.median(e):7.1f} {np.quantile(e, 0.9):7.1f}      {(e > 20).mean():11.0%}"
            print(f"{name:32} {preset:16} {block} {np.median(hand):7.2f}")


if __name__ == "__main__":
    main()
