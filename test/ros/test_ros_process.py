"""How a node's executor is kept running."""

import threading

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

import rclpy
from rclpy.executors import MultiThreadedExecutor
from ros_harness import domain, wait_until
from std_msgs.msg import Empty

from fast3r_ros.ros.process import spin_until


def test_an_entity_destroyed_under_the_executor_does_not_end_it() -> None:
    """In life it is a subscription that another thread destroys; the exception is the same."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain(15))
    node = rclpy.create_node("process", context=context)
    executor = MultiThreadedExecutor(2, context=context)
    executor.add_node(node)
    publisher = node.create_publisher(Empty, "empty", 1)
    node.destroy_publisher(publisher)
    calls: list[int] = []

    def publish() -> None:
        calls.append(1)
        publisher.publish(Empty())

    node.create_timer(0.02, publish)
    stop = threading.Event()
    spinning = spin_until(stop, executor)
    wait_until(lambda: len(calls) > 5, 10, "more calls after the first has failed")
    assert spinning.is_alive()
    stop.set()
    executor.shutdown(timeout_sec=1.0)
    spinning.join(5)
    assert not spinning.is_alive()
    node.destroy_node()
    rclpy.shutdown(context=context)
