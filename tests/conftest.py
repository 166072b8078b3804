"""What every test runs under: no network, no cache of the user's, no GPU, one thread, reproducible examples."""

import os
import tempfile

from hypothesis import settings

# Removed when the process ends. LeRobot and `datasets` cache what they open; a test must find nothing of yesterday's.
_CACHE = tempfile.TemporaryDirectory(prefix="volar-tests-")
os.environ["HF_HOME"] = _CACHE.name
os.environ["ROS_LOG_DIR"] = _CACHE.name
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # what is compared bit for bit is computed as on any machine
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")

settings.register_profile("volar", derandomize=True, deadline=None)
settings.load_profile("volar")
