"""Worker processes that end with the work, with an interrupt, and with the process that started them."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from volar.robots.errors import VolarError

# A second thread team in each worker would only wait for the same cores; Mesa renders in the calling thread at 0.
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1") | {"LP_NUM_THREADS": "0"}


@contextmanager
def worker_pool(
    workers: int, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Processes that share nothing with this one, each of which calls `initializer(*initargs)` first.

    On leaving, also by an exception, what has begun is finished and the rest is not. Raises `VolarError` when a
    worker is killed.
    """
    # spawn: forking would copy threads and OpenGL contexts; each worker makes its own renderer.
    with _environment(_THREADS):
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start, initargs=(initializer, initargs))
        try:
            yield pool
        except BrokenProcessPool as error:
            raise VolarError(
                "a worker process died (out of memory, or killed); resume=true continues, workers=1 needs less memory"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one decides when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    """Ends this worker when its parent is killed; the pool's queue would let it wait for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables for the processes started inside."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
