"""Status, diagnostics, the occupancy grid, and images of results: pure functions of the node's state."""

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed here")

from diagnostic_msgs.msg import DiagnosticStatus
from fast3r_ros.msg import MappingStatus
from reports import camera, mapper_status

from fast3r_ros.mapping.occupancy import FREE, OCCUPIED, UNKNOWN, Occupancy
from fast3r_ros.mapping.view_maps import ViewMaps
from fast3r_ros.ros.counters import LOST, Counters
from fast3r_ros.ros.image_messages import at_input_size, camera_info, confidence_color
from fast3r_ros.ros.messages import grid_message, readable_reason
from fast3r_ros.ros.status import Report, diagnostics_message, status_message

ROOT = Path(__file__).resolve().parents[2]


def test_status_accounts_for_every_frame() -> None:
    report = Report(2, 1, MappingStatus.MAPPING, received=12, drops={"wrong step": 2}, mapper=mapper_status())
    message = status_message(report, "map")
    assert (message.frames_received, message.frames_used, message.frames_dropped) == (12, 4, 5)
    assert message.frames_waiting == 3
    assert {drop.reason: drop.count for drop in message.drops} == {"no motion": 3, "wrong step": 2}
    assert (message.windows, message.windows_rejected) == (3, 1)  # of all that were processed
    assert message.metres
    assert message.header.frame_id == "map"


@pytest.mark.parametrize("sigma", [float("inf"), float("nan")])
def test_an_unknown_scale_has_no_uncertainty(sigma: float) -> None:
    report = Report(2, 1, MappingStatus.MAPPING, mapper=mapper_status(scale_sigma=sigma, metres=False))
    assert np.isnan(status_message(report, "map").scale_sigma)
    known = Report(2, 1, MappingStatus.MAPPING, mapper=mapper_status(scale_sigma=0.25))
    assert status_message(known, "map").scale_sigma == 0.25


def test_every_reason_of_a_drop_is_explained() -> None:
    """The reasons of the mapper and the node form one vocabulary, documented in docs/ros.md."""
    makers = "drop|dropped|Rejected|TimeWentBack|BadImage"
    counted = re.compile(rf'(?:{makers})\(\s*"([^"]+)"|_dropped\["([^"]+)"\]')
    judged = re.compile(r'return "(\w+)"')
    sources = [*(ROOT / "fast3r_ros" / "ros").glob("*.py"), *(ROOT / "fast3r_ros" / "mapping").glob("*.py")]
    text = "".join(path.read_text() for path in [*sources, ROOT / "fast3r_ros" / "io" / "pixels.py"])
    reasons = {"".join(groups) for groups in counted.findall(text)}
    reasons |= set(judged.findall((ROOT / "fast3r_ros" / "mapping" / "keyframes.py").read_text()))
    assert {"no_motion", "overload", "size changed", "wrong step"} <= reasons
    page = (ROOT / "docs" / "ros.md").read_text()
    assert not [reason for reason in reasons if f"`{readable_reason(reason)}`" not in page]


@pytest.mark.parametrize(
    ("changes", "place", "level", "words"),
    [
        ({}, 0, DiagnosticStatus.OK, "images received"),
        ({"cameras": [camera(publishers=[])]}, 0, DiagnosticStatus.ERROR, "/image has no publisher"),
        ({"cameras": [camera(publishers=["/a", "/b"])]}, 0, DiagnosticStatus.ERROR, "/a, /b"),
        ({"cameras": [camera(silence=3.2)]}, 0, DiagnosticStatus.WARN, "no image for 3.2 s on /image"),
        ({"cameras": [camera(silence=None)]}, 0, DiagnosticStatus.WARN, "no image yet on /image"),
        ({"cameras": [camera(unheard=["/d"])]}, 0, DiagnosticStatus.ERROR, "/d publishes /image best effort"),
        ({"drops": {"wrong step": 3}}, 0, DiagnosticStatus.WARN, "wrong step: 3"),
        ({"drops": {"paused": 3}}, 0, DiagnosticStatus.OK, "3 dropped"),
        ({"problems": {"unusable camera_info": 2}}, 0, DiagnosticStatus.WARN, "unusable camera_info: 2"),
        ({"problems": {LOST: 9}}, 0, DiagnosticStatus.WARN, "9 images lost in transport: compress them"),
        ({"mapper": mapper_status(submaps=2)}, 1, DiagnosticStatus.WARN, "2 unconnected parts"),
        ({"mapper": mapper_status()}, 1, DiagnosticStatus.OK, "mapping"),
        ({"state": MappingStatus.LOST}, 1, DiagnosticStatus.WARN, "~/reset"),
        ({"state": MappingStatus.ERROR, "last_error": "no model"}, 1, DiagnosticStatus.ERROR, "no model"),
        ({"parents": {"odom": "world"}}, 2, DiagnosticStatus.ERROR, "odom already has the parent world"),
        ({"waiting_for": "no transform"}, 2, DiagnosticStatus.WARN, "no transform"),
    ],
)
def test_diagnostics_give_advice(changes: dict, place: int, level: bytes, words: str) -> None:
    report = Report(
        **{"now_ns": 2, "stamp_ns": 1, "state": MappingStatus.MAPPING, "cameras": [camera()], **changes}
    )
    message = diagnostics_message(report, "fast3r_mapping")
    assert message.header.stamp.nanosec == 2
    status = message.status[place]
    assert status.level == level
    assert words in status.message


def test_diagnostics_report_approximations() -> None:
    report = Report(2, 1, MappingStatus.MAPPING, accelerate="stream=4")
    values = {item.key: item.value for item in diagnostics_message(report, "fast3r_mapping").status[1].values}
    assert values["accelerate"] == "stream=4"


def test_diagnostics_count_passes_that_were_repeated() -> None:
    report = Report(2, 1, MappingStatus.MAPPING, mapper=mapper_status(repeated_passes=3))
    values = {item.key: item.value for item in diagnostics_message(report, "fast3r_mapping").status[1].values}
    assert values["passes repeated in a safer precision"] == "3"


def test_counters_add_up() -> None:
    counters = Counters()
    for _ in range(200):
        with counters.timed_callback():
            counters.received()
    counters.dropped("a")
    counters.problem("b")
    counters.error("c")
    assert counters.snapshot() == (200, {"a": 1}, {"b": 1}, "c")
    p99, longest = counters.callback_times()
    assert 0 < p99 <= longest < 1
    counters.reset()
    assert counters.snapshot() == (0, {}, {}, "")


def test_a_grid_is_laid_out_as_map_server_wants_it() -> None:
    """Row by row from the lower left corner."""
    cells = np.array([[OCCUPIED, FREE, UNKNOWN], [FREE, FREE, UNKNOWN]], np.int8)
    grid = grid_message(Occupancy(cells, 0.1, np.array([-1.0, 2.0]), 0.25), 7, "map")
    assert (grid.info.width, grid.info.height, list(grid.data)) == (3, 2, cells.ravel().tolist())
    place = grid.info.origin.position
    assert (place.x, place.y, place.z, grid.info.origin.orientation.w) == (-1.0, 2.0, 0.25, 1.0)
    assert (grid.header.frame_id, grid.info.resolution) == ("map", pytest.approx(0.1))


def test_results_lie_over_the_camera_image() -> None:
    """A network of 4x2 pixels with the centre of a 20x8 image at a quarter of its size."""
    network_from_image = np.array([[0.25, 0, -0.5], [0, 0.25, 0], [0, 0, 1.0]])
    values = np.arange(8.0, dtype=np.float32).reshape(2, 4)
    laid = at_input_size(values, network_from_image, (20, 8), np.nan)
    assert laid.shape == (8, 20)
    assert np.isnan(laid[:, :2]).all()
    assert np.isnan(laid[:, 18:]).all()
    assert np.array_equal(laid[:, 2:18], np.repeat(np.repeat(values, 4, axis=0), 4, axis=1))


def test_depth_and_colours() -> None:
    points, confidence = np.zeros((2, 2, 3), np.float32), np.ones((2, 2), np.float32)
    points[..., 2] = [[1, 2], [-1, 4]]
    maps = ViewMaps.of_arrays(points, confidence, np.array([[True, False], [True, True]]))
    depth = maps.depth_image()
    assert depth[0, 0] == 1
    assert depth[1, 1] == 4
    assert np.isnan(depth[0, 1])
    assert np.isnan(depth[1, 0])
    rgb = confidence_color(np.array([[0.0, 1.0, 10.0]], np.float32), 10.0)
    assert rgb[0, 0].tolist() == [0, 0, 0]
    assert rgb[0, 2, 0] > rgb[0, 2, 2]  # warm
    assert rgb[0, 1, 2] >= rgb[0, 1, 0]  # cold


def test_camera_info_has_ros_pixel_centres() -> None:
    info = camera_info(np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]), 64, 48, 5, "camera")
    assert list(info.k) == [50, 0, 31.5, 0, 50, 23.5, 0, 0, 1]
    assert list(info.p) == [50, 0, 31.5, 0, 0, 50, 23.5, 0, 0, 0, 1, 0]
    assert (info.width, info.height, info.distortion_model) == (64, 48, "plumb_bob")
