"""Small decisions of the node: reliability, window size, paths of maps, devices, depth images."""

import array
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rclpy", reason="ROS is not installed here")

from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import Image

from fast3r_ros.errors import UserError
from fast3r_ros.io.pixels import BadImage
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.storage import SavedMap, write_map
from fast3r_ros.model.speed.acceleration import Acceleration, acceleration_of
from fast3r_ros.ros.image_messages import depth_to_metres
from fast3r_ros.ros.map_files import path_for_loading, path_for_saving
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.ros.subscriptions import Gaps, adapted_reliability
from fast3r_ros.ros.worker import load_network, resolve_device, smaller_window

pytestmark = pytest.mark.slow

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT


@pytest.mark.parametrize(
    ("offered", "wanted", "expected"),
    [
        ([], "auto", BEST_EFFORT),
        ([RELIABLE], "auto", RELIABLE),
        ([RELIABLE, BEST_EFFORT], "auto", BEST_EFFORT),
        ([RELIABLE], "best_effort", BEST_EFFORT),
        ([BEST_EFFORT], "reliable", RELIABLE),
    ],
)
def test_reliability_follows_the_publishers(offered: list, wanted: str, expected: ReliabilityPolicy) -> None:
    assert adapted_reliability(offered, wanted) == expected


def test_lost_images_are_found_by_their_numbers() -> None:
    gaps = Gaps()
    numbers = (7, 8, 12, 13, 1, 2, 4, None, 9)
    assert [gaps.before(b"a", number) for number in numbers] == [0, 0, 3, 0, 0, 0, 1, 0, 0]
    assert [gaps.before(b"b", number) for number in (100, 102)] == [0, 1]  # b has sent before
    gaps.restart()
    assert gaps.before(b"b", 200) == 0


def test_windows_shrink_to_stride_and_overlap_only() -> None:
    config = MapperConfig()
    sizes = [config.window.size]
    while (smaller := smaller_window(config)) is not config:
        config = smaller
        sizes.append(config.window.size)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == config.window.stride + config.window.overlap


def test_maps_stay_in_their_directory(tmp_path: Path) -> None:
    inside = tmp_path / "maps"
    assert path_for_saving(str(inside), "a/b.ply") == inside / "a" / "b.ply"
    assert path_for_saving(str(inside), "").name.startswith("map_")
    (inside / "out").symlink_to(tmp_path)
    for name in ("../x.ply", "/x.ply", "out/x.ply", ".", "a\0b"):
        with pytest.raises(UserError):
            path_for_saving(str(inside), name)
    for name in ("a\nb", "\x1b[31m", "\ud800", "x" * 300, "\U0001f5fa" * 60, "x/" * 600):
        for find in (path_for_saving, path_for_loading):
            with pytest.raises(UserError, match=r"cannot be printed|is too long") as caught:
                find(str(inside), name)
            assert len(str(caught.value)) < 200
    assert path_for_saving(str(inside), "Haus Süd \U0001f5fa").parent == inside
    (inside / "file").touch()
    with pytest.raises(UserError, match=r"cannot create the folder .*/file: "):
        path_for_saving(str(inside), "file/map")
    (inside / "map.json").mkdir()  # a folder of that name does not make its parent a map
    write_map(inside / "house", SavedMap((), (), False, 0.01))
    for name in ("house/b", "house/b/c", "house/x.ply"):
        with pytest.raises(UserError, match="lies inside the map"):
            path_for_saving(str(inside), name)
    assert not (inside / "house" / "b").exists()
    with pytest.raises(UserError, match="overwrite"):
        path_for_saving(str(inside), "house")
    assert path_for_saving(str(inside), "house", overwrite=True) == inside / "house"
    (inside / "folder").mkdir()
    assert path_for_saving(str(inside), "folder") == inside / "folder"  # an empty folder is not a map
    with pytest.raises(UserError, match="map_directory is not set"):
        path_for_saving("", "x.ply")
    with pytest.raises(UserError, match="no saved map"):
        path_for_loading(str(inside), "missing")


def test_devices_that_are_not_there_are_named() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cpu", "cuda")
    for device in ("cuda:99", "toaster"):
        with pytest.raises(UserError, match=device):
            resolve_device(device)


def test_the_network_gets_its_model_threads_precision_and_device() -> None:
    threads = torch.get_num_threads()
    try:
        network = load_network(
            NodeConfig(
                model="demo", device="cpu", dtype="bfloat16", torch_threads=threads + 1, accelerate="stream=3"
            )
        )
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    kinds = {(each.dtype, each.device.type) for each in network._model.parameters()}
    assert kinds == {(torch.bfloat16, "cpu")}
    assert acceleration_of(network.model) == Acceleration(stream=3)
    unusable = ({"model": "/no/such"}, {"expected_image": "big"}, {"accelerate": "fast"})
    for wrong, words in zip(unusable, ("/no/such", "expected_image", "acceleration 'fast'"), strict=True):
        with pytest.raises(UserError, match=words):
            load_network(NodeConfig(**wrong))


def test_no_node_logs_by_the_deprecated_warn() -> None:
    """All its calls count as one line: they share a throttle, and raise if only some have one."""
    folder = Path(__file__).resolve().parents[2] / "fast3r_ros" / "ros"
    assert not [path.name for path in folder.glob("*.py") if ".warn(" in path.read_text()]


@pytest.mark.parametrize(("encoding", "dtype", "unit"), [("32FC1", "f4", 1.0), ("16UC1", "u2", 0.001)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_depth_images_are_metres(encoding: str, dtype: str, unit: float, order: str) -> None:
    values = np.arange(12).reshape(3, 4).astype(order + dtype)
    padded = np.hstack([values.view(np.uint8).reshape(3, -1), np.full((3, 5), 7, np.uint8)])
    message = Image(
        height=3, width=4, encoding=encoding, step=padded.shape[1], is_bigendian=int(order == ">")
    )
    message.data = array.array("B", padded.tobytes())
    assert np.allclose(depth_to_metres(message), np.arange(12).reshape(3, 4) * unit)
    message.height = 4
    with pytest.raises(BadImage):
        depth_to_metres(message)
    message.encoding = "rgb8"
    with pytest.raises(BadImage):
        depth_to_metres(message)
