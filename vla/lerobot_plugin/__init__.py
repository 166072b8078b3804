"""Volar's policies in LeRobot: `--policy.discover_packages_path=volar.vla.lerobot_plugin --policy.type=volar`.

A package by itself, since LeRobot finds policy and processor through the names of modules beside the configuration's.
"""

import importlib.util

if importlib.util.find_spec("lerobot") is None:
    raise ImportError("volar.vla.lerobot_plugin needs LeRobot: pip install lerobot")

from volar.vla.lerobot_plugin.configuration_volar import VolarConfig as VolarConfig
