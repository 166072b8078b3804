"""Draws docs/tabletop.png: every task of the suite as its expert is about to be done, front camera.

`python -P docs/tabletop.py`; the robots take turns, so that each is seen.
"""

from pathlib import Path

import cv2
import numpy as np

from volar.sim.tasks import TASKS
from volar.sim.world import StepDriver, TaskWorld

SIZE, COLUMNS, SEED = 220, 5, 3
ROBOTS = ("fr3", "ur5e", "so101")


def almost_done(task: str, robot: str) -> np.ndarray:
    """The image (SIZE, SIZE, 3) a few steps before the expert succeeds, with the task's and the robot's name."""
    driver = StepDriver(TaskWorld(task, robot, image_size=2 * SIZE))
    driver.reset(SEED)
    frames = [driver.world.body.images()["front"]]
    while not driver.world.success():
        driver.step(driver.world.expert().astype(np.float32))
        frames.append(driver.world.body.images()["front"])
    image = cv2.resize(frames[-3], (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    text = f"{task}, {robot}"
    for color, width in (((40, 40, 40), 3), ((255, 255, 255), 1)):
        cv2.putText(image, text, (8, SIZE - 10), cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, width, cv2.LINE_AA)
    driver.world.close()
    return np.asarray(image)


if __name__ == "__main__":
    tiles = [almost_done(task, ROBOTS[i % len(ROBOTS)]) for i, task in enumerate(TASKS)]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
    rows = [np.hstack(tiles[i : i + COLUMNS]) for i in range(0, len(tiles), COLUMNS)]
    path = Path(__file__).with_suffix(".png")
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    print(path)
