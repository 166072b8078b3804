"""Executes the controller's callbacks: its orders in one thread, its sensors in another."""

import threading
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

if TYPE_CHECKING:
    from volar.robots.ros2.controller_node import ControllerNode

ORDER_S: Final = 15.0  # braking takes up to 10; only loading a policy takes longer, and that moves nothing


class Spinning:
    """A context manager: inside it, callbacks run. Two executors of one thread each take a fifth of the time of one
    with two threads. What a callback raises is logged, and the others go on."""

    def __init__(self, node: "ControllerNode") -> None:
        self._node = node
        self._orders, self._sensors = _Spinner(node, node), _Spinner(node.inputs, node)

    def stop_orders(self) -> None:
        """Returns when no order that moves the arm is being carried out, and none will be: transitions may be made
        from here."""
        self._orders.stop(ORDER_S)

    def __enter__(self) -> Self:
        for spinner in (self._orders, self._sensors):
            spinner.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for spinner in (self._orders, self._sensors):
            spinner.stop(2.0)


class _Spinner:
    def __init__(self, node: Node, logs: Node) -> None:
        self._executor, self._logs = SingleThreadedExecutor(), logs
        self._executor.add_node(node)
        self._stopped = threading.Event()
        self._wake = node.create_guard_condition(lambda: None)  # an executor waits until it has something to do
        self.thread = threading.Thread(target=self._run, name=f"spin {node.get_name()}", daemon=True)

    def stop(self, timeout_s: float) -> None:
        if not self._stopped.is_set():
            self._stopped.set()
            self._wake.trigger()
        self.thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopped.is_set() and rclpy.ok():
            try:
                self._executor.spin_once()
            except ExternalShutdownException:
                return
            except Exception:  # one broken message, or a subscription that was just taken away
                self._logs.get_logger().error(traceback.format_exc())
