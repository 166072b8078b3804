"""A remote policy on this machine: the round trip of two images of 224 x 224, and what a control tick pays for it.

python -P benchmarks/remote.py [--requests 1000]

The server is a process of its own whose policy answers at once, so that what is left is copying, packing, two trips
through the loopback interface, checking and unpacking. The round trip is from `submit` to the `poll` that returns the
chunk, polled every 0.1 ms. The tick is a loop at 100 Hz that polls in every period and submits whenever it may, as the
control loop does; its time is that of `submit` and `poll` together.
"""

import argparse
import subprocess
import sys
import time

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from volar.robots.contract import CameraSpec, PolicyContract
from volar.robots.fr3 import FR3
from volar.robots.interface import ActionChunk, Observation
from volar.robots.remote_policy import RemotePolicy
from volar.robots.serve import PolicyServer

PIXELS, CHUNK_LENGTH = 224, 16
PERIOD_S = 0.01
WARM_UP = 20


class Instant:
    """A policy that stands still."""

    contract = PolicyContract(
        robot=FR3.name,
        action=FR3.action,
        state_names=FR3.state_names,
        state_units=FR3.state_units,
        cameras=tuple(CameraSpec(name, PIXELS, PIXELS) for name in FR3.cameras),
        chunk_length=CHUNK_LENGTH,
        execute_steps=CHUNK_LENGTH // 2,
    )

    def reset(self, seed: int) -> None:
        """Nothing to reset."""

    def predict(self, observation: Observation) -> ActionChunk:
        actions = np.zeros((CHUNK_LENGTH, self.contract.action.size), np.float32)
        return ActionChunk(actions, observation.stamp_ns, 1.0 / self.contract.action.rate_hz)


def observation(stamp_ns: int) -> Observation:
    rng = np.random.default_rng(stamp_ns)
    images = {name: rng.integers(0, 256, (PIXELS, PIXELS, 3), np.uint8) for name in FR3.cameras}
    return Observation(images, np.zeros(len(FR3.state_names), np.float32), "lift the red block", stamp_ns)


def round_trips(remote: RemotePolicy, requests: int) -> NDArray[np.float64]:
    """(requests,) [s]."""
    times = []
    for i in range(WARM_UP + requests):
        look = observation(i)
        start_s = time.perf_counter()
        remote.submit(look)
        while (chunk := remote.poll(0)) is None:
            if not remote.pending:
                raise RuntimeError(remote.error)
            time.sleep(1e-4)
        times.append(time.perf_counter() - start_s)
        assert chunk.stamp_ns == i
    return np.array(times[WARM_UP:])


def ticks(remote: RemotePolicy, requests: int) -> tuple[NDArray[np.float64], int]:
    """Time in each tick [s] until `requests` chunks have come, and how many were given up."""
    looks = [observation(i) for i in range(16)]
    times, chunks, given_up, waiting = [], 0, 0, False
    deadline_s = time.perf_counter()
    while chunks < requests:
        start_s = time.perf_counter()
        if not remote.pending:
            remote.submit(looks[chunks % len(looks)])
            waiting = True
        got = remote.poll(0) is not None
        times.append(time.perf_counter() - start_s)
        chunks += got
        given_up += waiting and not got and not remote.pending
        waiting = waiting and not got
        deadline_s = max(deadline_s + PERIOD_S, time.perf_counter())
        time.sleep(max(0.0, deadline_s - time.perf_counter()))
    return np.array(times), given_up


def serve() -> None:
    server = PolicyServer(Instant(), "127.0.0.1", 0)
    print(server.port, flush=True)
    server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    command = [sys.executable, "-P", __file__, "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            with RemotePolicy(f"ws://127.0.0.1:{int(server.stdout.readline())}") as remote:
                trips = round_trips(remote, options.requests)
                spent, given_up = ticks(remote, options.requests)
        finally:
            server.terminate()
    table = Table(title=f"remote policy on localhost, two images {PIXELS} x {PIXELS}, {options.requests} chunks (ms)")
    for column in ("", "p50", "p99", "max"):
        table.add_column(column, justify="right" if column else "left")
    for name, times in (("round trip", trips), ("submit + poll, in a tick", spent)):
        table.add_row(name, *(f"{1e3 * value:.3f}" for value in (*np.percentile(times, [50, 99]), times.max())))
    Console().print(table)
    print(f"{len(spent)} ticks at {1 / PERIOD_S:.0f} Hz, {given_up} requests given up")


if __name__ == "__main__":
    main()
