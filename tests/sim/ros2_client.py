"""A small ROS 2 client for the tests of the twin and of both nodes, and a domain of its own for each module."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

WAIT_S = 90.0  # for what takes a second or two on an idle machine; discovery alone can take 2.4 s


@contextmanager
def own_domain(number: int) -> Iterator[int]:
    """rclpy on a domain that no other module or worker uses; yields it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    domain = 1 + (os.getpid() + 31 * worker + 13 * number) % 100
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    rclpy.init(domain_id=domain)
    try:
        yield domain
    finally:
        rclpy.try_shutdown()


class Client:
    """Remembers every message of the topics it hears, in order. A context manager: inside it, messages come."""

    def __init__(self, name: str = "test_client") -> None:
        self.node = Node(name)
        self.heard: dict[str, list[Any]] = {}
        self.changed = threading.Condition()
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)

    def hear(self, kind: Any, topic: str, qos: Any) -> None:
        self.heard[topic] = []
        self.node.create_subscription(kind, topic, lambda message: self._take(topic, message), qos)

    def ask(self, kind: Any, service: str, meanwhile: Callable[[], None] = lambda: None) -> Any:
        """The answer of a service."""
        client = self.node.create_client(kind, service)
        self.until(client.service_is_ready, meanwhile)
        answer = client.call_async(kind.Request())
        self.until(answer.done, meanwhile)
        return answer.result()

    def until(self, there: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Returns when it is so; `meanwhile` is called again and again. Fails after `WAIT_S`."""
        deadline_s = time.monotonic() + WAIT_S
        while not there():
            assert time.monotonic() < deadline_s, "it did not come"
            meanwhile()
            with self.changed:
                self.changed.wait(0.005)

    def _take(self, topic: str, message: Any) -> None:
        with self.changed:
            self.heard[topic].append(message)
            self.changed.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(timeout_sec=2.0)
        self._thread.join(timeout=2.0)
        self.node.destroy_node()
