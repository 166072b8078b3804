"""Whether this machine has a graphics processor, and whether OpenGL uses it."""

from pathlib import Path

# What Mesa calls its renderers that run on the processor (GL_RENDERER).
SOFTWARE = ("llvmpipe", "softpipe", "swrast", "software rasterizer")
# Kernel drivers of devices that show pictures and compute none.
_DISPLAYS_ONLY = ("vgem", "vkms", "bochs-drm", "virtio_gpu", "virtio-pci", "simple-framebuffer", "simpledrm", "cirrus")
FIX = (
    "install its driver's OpenGL (libnvidia-gl, or libegl1 with Mesa's driver) and let this user open /dev/dri/render*"
)


def renders_in_software(renderer: str) -> bool:
    """`renderer`: GL_RENDERER."""
    return any(name in renderer.lower() for name in SOFTWARE)


def find_gpu(root: Path = Path("/")) -> str:
    """The device file and driver of a graphics processor, or an empty string. `root`: of the file system."""
    for name in ("nvidia0", "dxg"):  # NVIDIA's own driver; Windows' graphics under WSL
        if (root / "dev" / name).exists():
            return f"/dev/{name}"
    for device in sorted((root / "dev" / "dri").glob("renderD*")):
        link = root / "sys" / "class" / "drm" / device.name / "device" / "driver"
        driver = link.resolve().name if link.exists() else ""
        if driver and driver not in _DISPLAYS_ONLY:
            return f"/dev/dri/{device.name} ({driver})"
    return ""


def unused_gpu(renderer: str, root: Path = Path("/")) -> str:
    """The graphics processor that this renderer leaves idle, or an empty string."""
    return find_gpu(root) if renders_in_software(renderer) else ""
