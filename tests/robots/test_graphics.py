"""A GPU is told from what only shows pictures, and software rendering beside one is noticed."""

from pathlib import Path

import pytest

from volar.robots.graphics import find_gpu, unused_gpu


def machine(root: Path, driver: str) -> Path:
    """The device files of one render node with that kernel driver."""
    (root / "dev" / "dri").mkdir(parents=True)
    (root / "dev" / "dri" / "renderD128").touch()
    (root / "sys" / "bus" / driver).mkdir(parents=True)
    device = root / "sys" / "class" / "drm" / "renderD128" / "device"
    device.mkdir(parents=True)
    (device / "driver").symlink_to(root / "sys" / "bus" / driver)
    return root


@pytest.mark.parametrize(("driver", "found"), [("amdgpu", "/dev/dri/renderD128 (amdgpu)"), ("vgem", "")])
def test_render_nodes_count_by_their_driver(tmp_path: Path, driver: str, found: str) -> None:
    assert find_gpu(machine(tmp_path, driver)) == found


def test_only_software_rendering_leaves_a_gpu_unused(tmp_path: Path) -> None:
    assert unused_gpu("llvmpipe (LLVM 19.1.7, 256 bits)", tmp_path) == ""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert unused_gpu("llvmpipe (LLVM 19.1.7, 256 bits)", tmp_path) == "/dev/nvidia0"
    assert unused_gpu("NVIDIA L4/PCIe/SSE2", tmp_path) == ""
