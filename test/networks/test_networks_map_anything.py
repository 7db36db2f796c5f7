"""MapAnything with random weights: upstream's own code, on the CPU, through our adapter."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_map_anything import small_map_anything

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import Frame
from fast3r_ros.networks import NetworkOptions, load_network
from fast3r_ros.networks.map_anything import WHERE, MapAnythingNetwork, known_inputs
from fast3r_ros.synthetic.sequence import demo_sequence

SIZE = 112  # pixels; 8 patches


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    if importlib.util.find_spec("mapanything") is None:
        pytest.skip(f"mapanything is not installed here; {WHERE}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = small_map_anything()
    except OSError as error:
        pytest.skip(f"torch.hub has no code of DINOv2 here, which mapanything takes from GitHub: {error}")
    yield model
    torch.set_num_threads(threads)


def frames(with_depth: bool, count: int = 3) -> list[Frame]:
    walk = demo_sequence(2.0, with_depth=with_depth)
    return [walk[6 * i] for i in range(count)]


def test_images_alone(model: Any) -> None:
    adapter = MapAnythingNetwork(model, SIZE)
    views = [adapter.encode(replace(frame, intrinsics=None)) for frame in frames(False)]
    assert all("intrinsics" not in view.tokens for view in views)
    check(model, adapter, views)


def test_known_inputs_are_used(model: Any) -> None:
    """Views with calibration and depth, with calibration alone, and without either, in one window."""
    adapter = MapAnythingNetwork(model, SIZE)
    first, second, third = frames(True)
    views = [
        adapter.encode(frame)
        for frame in (first, replace(second, depth=None), replace(third, intrinsics=None, depth=None))
    ]
    assert [sorted(view.tokens.keys() & {"intrinsics", "depth_z"}) for view in views] == [
        ["depth_z", "intrinsics"],
        ["intrinsics"],
        [],
    ]
    height, width = views[0].image.shape[:2]
    known = views[0].tokens
    assert known["depth_z"].shape == (1, height, width)
    # pixel centres at integers: the principal point lies half a pixel before the middle
    np.testing.assert_allclose(known["intrinsics"][0, :2, 2], [width / 2 - 0.5, height / 2 - 0.5], atol=1e-4)
    check(model, adapter, views)
    told, alone = (adapter.reconstruct(each) for each in (views, [adapter.encode(f) for f in frames(False)]))
    assert not torch.allclose(told.points_local[0], alone.points_local[0])


def test_known_poses_are_taken(model: Any) -> None:
    adapter = MapAnythingNetwork(model, SIZE)
    views = [adapter.encode(frame) for frame in frames(False)]
    poses = demo_sequence(2.0).world_from_camera
    placed = [replace(view, odom_from_camera=poses[6 * i]) for i, view in enumerate(views)]
    check(model, adapter, placed)
    assert not torch.allclose(
        adapter.reconstruct(placed).points_local[1], adapter.reconstruct(views).points_local[1]
    )
    check(model, adapter, [placed[0], views[1], placed[2]])  # one is a keyframe that is seen again
    assert all("camera_poses" not in each for each in known_inputs([views[0], *placed[1:]]))


def check(model: Any, adapter: MapAnythingNetwork, views: list[Any]) -> None:
    """Shapes, ranges, and the points against upstream's points in the world."""
    maps = adapter.reconstruct(views)
    with torch.inference_mode():
        raw = model.infer(known_inputs(views), use_amp=False, apply_mask=False, mask_edges=False)
    assert maps.metric
    assert maps.window_from_camera is not None
    np.testing.assert_allclose(maps.window_from_camera[0], np.eye(4), atol=1e-6)
    first_from_world = np.linalg.inv(raw[0]["camera_poses"][0].double().numpy())
    for i, view in enumerate(views):
        size = view.image.shape[:2]
        assert maps.points_local[i].shape == (*size, 3)
        assert maps.confidence_local[i].shape == size
        assert maps.confidence_local[i].min() >= 1.0
        assert np.linalg.norm(view.descriptor) == pytest.approx(1.0, abs=1e-5)
        torch.testing.assert_close(maps.points_local[i], raw[i]["pts3d_cam"][0])
        world = raw[i]["pts3d"][0].double().numpy()
        moved = world @ first_from_world[:3, :3].T + first_from_world[:3, 3]
        np.testing.assert_allclose(maps.points_global[i], moved, atol=2e-3 * np.abs(moved).max())
        unsure = ~raw[i]["non_ambiguous_mask"][0]
        assert (maps.confidence_local[i][unsure] == 1.0).all()


def test_an_encoded_image_stays_as_it_is(model: Any) -> None:
    adapter = MapAnythingNetwork(model, SIZE)
    view = adapter.encode(frames(False, 1)[0])
    again = adapter.encode(Frame(0, "a", view.image))
    np.testing.assert_array_equal(again.image, view.image)
    np.testing.assert_array_equal(again.network_from_image, np.eye(3))


def test_views_of_several_sizes_are_rejected(model: Any) -> None:
    adapter = MapAnythingNetwork(model, SIZE)
    images = (np.zeros((84, 112, 3), np.uint8), np.zeros((112, 84, 3), np.uint8))
    with pytest.raises(UserError, match="one size"):
        adapter.reconstruct([adapter.encode(Frame(0, "a", image)) for image in images])


def test_a_missing_package_is_reported_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mapanything", None)
    monkeypatch.delitem(sys.modules, "mapanything.models", raising=False)
    with pytest.raises(
        UserError, match=r"not on PyPI; installation: https://github\.com/facebookresearch/map-anything"
    ):
        load_network("mapanything:apache", NetworkOptions(device="cpu"))
