"""Robustness of a node's executor and process."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

import rclpy
from camera import Camera, faulty_command, ready_listener
from patience import HANG_SECONDS, wait_until
from rclpy.executors import MultiThreadedExecutor
from ros_harness import NODE, ROOT, Program, domain, running
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Empty

from fast3r_ros.ros.process import spin_until


def test_an_entity_destroyed_under_the_executor_does_not_end_it() -> None:
    """In practice another thread destroys a subscription; the exception is the same."""
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
    wait_until(lambda: len(calls) > 5, "more calls after the first has failed")
    assert spinning.is_alive()
    stop.set()
    executor.shutdown(timeout_sec=1.0)
    spinning.join(HANG_SECONDS)
    assert not spinning.is_alive()
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_of_the_network_do_not_spin_unless_configured(before: str | None, after: str) -> None:
    """The variable counts only when it is set before PyTorch is loaded."""
    environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    if before is not None:
        environ["OMP_WAIT_POLICY"] = before
    code = "import fast3r_ros.ros, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=True, timeout=HANG_SECONDS
    )
    assert result.stdout.split() == [after, "False"]


@pytest.mark.parametrize(
    "text", ["/**: [a\n", "a: &a [*a]\n", "[" * 5000, "\0", None], ids=lambda text: repr(text)[:9]
)
def test_parameters_that_cannot_be_read_are_one_line(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "parameters.yaml"
    if text is not None:
        path.write_text(text)
    program = "from fast3r_ros.ros.process import begin; begin(['node', '--ros-args', '--params-file', %r])"
    done = subprocess.run(
        [sys.executable, "-c", program % str(path)], capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 2, done.stderr
    *before, line = done.stderr.strip().splitlines()
    assert all("[rcl]" in each for each in before)  # what rcl itself logs
    assert "parameters.yaml" in line


@pytest.mark.parametrize("logs", ["/proc/nothing/logs", __file__, "~nobody_at_all/logs", None])
def test_the_node_continues_without_a_log_file(tmp_path: Path, logs: str | None) -> None:
    names = ("ROS_LOG_DIR", "ROS_HOME", "HOME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    if logs is not None:
        environment["ROS_LOG_DIR"] = logs.replace("~", "/proc/~")
    code = (
        "from fast3r_ros.ros.process import begin; begin(['node'])\n"
        "import rclpy; rclpy.create_node('a').get_logger().info('it goes on')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    line, last = done.stderr.strip().splitlines()
    assert line.startswith("node: no log file in")
    assert "ROS_LOG_DIR" in line
    assert "it goes on" in last
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_of_logs_does_not_stop_mapping(tmp_path: Path) -> None:
    """The log, on a disk of 16 kB, and both streams, which go to /dev/full."""
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    disk = f"mount -t tmpfs -o size=16k none {tmp_path}"
    if subprocess.run([*isolated, disk], capture_output=True).returncode != 0:
        pytest.skip("this machine gives no name space of its own (unshare)")
    full = f"{disk} && mkdir {tmp_path}/log && (cat /dev/zero > {tmp_path}/zeros; true) 2> /dev/null"
    start = f'{full}; ROS_LOG_DIR={tmp_path}/log exec "$0" "$@" > /dev/full 2> /dev/full'
    domain_id = domain(16)
    node = Program([*isolated, start, *faulty_command(tmp_path / "fault")], domain_id)
    with running(node):
        listener = ready_listener(domain_id)
        camera = Camera(listener)
        camera.connect()
        bad = listener.node.create_publisher(CameraInfo, "/camera_info", 10)
        for number in range(30):  # each has a different text
            bad.publish(CameraInfo(width=number, height=1, k=[float(number)] * 9))
            camera.deliver(1)
        camera.deliver(20)
        status = listener.wait_for(f"{NODE}/status", lambda message: message.map_points > 0)
        assert status.frames_received == status.frames_used + status.frames_waiting + status.frames_dropped
        assert node.stop() == 0
        listener.close()


def test_without_shared_memory_messages_go_over_udp_after_one_sentence() -> None:
    """A separate namespace with read-only /dev/shm, like in some containers."""
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    hide = "mount -t tmpfs -o ro none /dev/shm"
    if subprocess.run([*isolated, hide], capture_output=True).returncode != 0:
        pytest.skip("this machine gives no name space of its own (unshare)")
    code = (
        "from fast3r_ros.ros.process import begin; begin(['node'])\n"
        "import rclpy, time; from std_msgs.msg import Empty\n"
        "nodes = [rclpy.create_node(name) for name in 'ab']; heard = []\n"
        "nodes[0].create_subscription(Empty, 'shm_test', heard.append, 1)\n"
        "publisher = nodes[1].create_publisher(Empty, 'shm_test', 1); end = time.monotonic() + 240\n"
        "while not heard and time.monotonic() < end:\n"
        "    publisher.publish(Empty()); rclpy.spin_once(nodes[0], timeout_sec=0.1)\n"
        "print(len(heard) > 0)"
    )
    done = subprocess.run(
        [*isolated, f'{hide} && exec "$0" -c "$1"', sys.executable, code],
        env={
            n: v for n, v in os.environ.items() if n != "ROS_AUTOMATIC_DISCOVERY_RANGE"
        },  # of a listener here
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.stdout == "True\n", done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("node: /dev/shm")
    assert "--shm-size" in line


STARTS_A_NODE = """
import sys
from ros_harness import MAPPING, Program, arguments
node = Program([*MAPPING, *arguments({"model": "demo"})], int(sys.argv[1]))
print(node.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_test_run_leaves_no_node_behind() -> None:
    """Another run would meet it in its domain."""
    path = os.pathsep.join([str(ROOT / "test" / "helpers"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.Popen(
        [sys.executable, "-c", STARTS_A_NODE, str(domain(45))],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    node = Path("/proc", run.stdout.readline().strip(), "stat")
    wait_until(lambda: node.exists() and state(node) == "S", "a node that runs")
    run.kill()
    run.communicate()
    wait_until(lambda: not node.exists() or state(node) == "Z", "its end")


ASKS_FOR_A_TAKEN_DOMAIN = """
import os, sys
from domains import domain
print(domain(int(sys.argv[1]) - 1 - 7 * os.getpid()))
"""


def test_test_runs_without_common_files_share_no_domain(tmp_path: Path) -> None:
    """Two containers of one network have no common folder, and hear each other's nodes."""
    taken = domain(45)
    done = subprocess.run(
        [sys.executable, "-c", ASKS_FOR_A_TAKEN_DOMAIN, str(taken)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "test" / "helpers"), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) != taken


def state(stat: Path) -> str:
    """The process's state, S for sleeping, Z for ended."""
    return stat.read_text().rpartition(")")[2].split()[0]
