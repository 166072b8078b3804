"""Volar's tasks in LeRobot: `--env.discover_packages_path=volar.sim.lerobot_plugin --env.type=volar --env.task=reach`.

For any of LeRobot's policies; `volar.vla.lerobot_plugin` is the one that knows Volar's. A package, since LeRobot looks
for modules inside what it is told to import.
"""

from volar.sim.lerobot_plugin.configuration import VolarEnv as VolarEnv
