"""Scheduling before other programs, as a user without the rights of root has it."""

import os
import subprocess
import sys

import pytest

# Root with the rights of a user from there on: what `rtprio` in limits.conf gives, and no CAP_SYS_NICE to leave with.
TWICE = """
import os
from volar.robots.real_time import real_time_scheduling
for _ in range(2):
    before = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
    with real_time_scheduling() as entered:
        inside = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
        if os.getuid() == 0:
            os.setuid(65534)
    assert os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == before
    print("entered" if entered and inside == os.SCHED_FIFO else "refused")
"""


@pytest.mark.skipif(not hasattr(os, "SCHED_RESET_ON_FORK"), reason="only Linux has it")
def test_a_user_leaves_real_time_scheduling_as_they_were() -> None:
    ended = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    if ended.stdout.startswith("refused"):
        pytest.skip("this system lets nobody in")
