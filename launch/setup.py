"""The ROS 2 package volar_ros2: no code of its own, the nodes are those of the Python package volar."""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent

setup(
    name="volar_ros2",
    version="0.1.0",
    packages=[],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/volar_ros2"]),
        ("share/volar_ros2", ["package.xml"]),
        ("share/volar_ros2/launch", sorted(str(p.relative_to(HERE)) for p in (HERE / "launch").glob("*.launch.py"))),
        ("share/volar_ros2/config", sorted(str(p.relative_to(HERE)) for p in (HERE / "config").glob("*.yaml"))),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    license="Apache-2.0",
    description="Launch files and parameters of the Volar controller and of its simulated arm",
    entry_points={
        "console_scripts": [
            "controller = volar.robots.ros2.controller_node:main",
            "sim_robot = volar.sim.ros2_robot:main",
        ]
    },
)
