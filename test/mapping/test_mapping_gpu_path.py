"""A window from images to packed messages on a device that is not the host.

It runs with real numbers on the stand-in for a second device, where mixing host and device fails, and which
counts every copy to the host and every number that somebody waits for.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from second_device import DEVICE, SecondDevice

from fast3r_ros.geometry.camera_pose import CameraPoses
from fast3r_ros.geometry.sim3 import Sim3
from fast3r_ros.mapping import view_maps
from fast3r_ros.mapping.calibration import WindowCameras
from fast3r_ros.mapping.config import MapperConfig, PointsConfig
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction
from fast3r_ros.mapping.map_update import MapUpdate, map_update
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.mapping.placement import RegisteredWindow, estimate_view
from fast3r_ros.mapping.point_records import view_bytes, view_records
from fast3r_ros.mapping.registration import Registration
from fast3r_ros.mapping.tracking import Track
from fast3r_ros.mapping.view_maps import fetch, mean_values, to_host
from fast3r_ros.mapping.warm_up import warm_up_mapping
from fast3r_ros.mapping.window import WindowView
from fast3r_ros.model import Fast3R
from fast3r_ros.model.preprocess import _weights, prepare_images

VIEWS, HEIGHT, WIDTH = 4, 48, 64
GRID = (HEIGHT // 16, WIDTH // 16)


def frame(stamp_ns: int = 0) -> Frame:
    rng = np.random.default_rng(stamp_ns)
    return Frame(stamp_ns, "a", rng.integers(0, 256, (120, 160, 3), np.uint8))


def view_of(tokens: object) -> WindowView:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    return WindowView(None, 0, "a", EncodedView(image, np.eye(3), np.eye(3), np.ones(4, np.float32), tokens))


def registered(views: list[WindowView], maps: Reconstruction) -> RegisteredWindow:
    """A window whose views all have view 0's pose, twice as large in the map."""
    count = len(views)
    many = np.ones(count)
    poses = CameraPoses(
        np.stack([np.eye(4)] * count),
        many,
        many,
        np.zeros((count, 6, 6)),
        many,
        many > 0,
        ("",) * count,
    )
    place = Registration(Sim3(2.0, np.eye(3), np.zeros(3)), 1.0, 0.0, np.zeros((7, 7)), "")
    cameras = WindowCameras(np.stack([np.eye(3)] * count), many < 0, many)
    return RegisteredWindow(views, maps, poses, cameras, place)


def on_device(network: Fast3R, dtype: torch.dtype) -> Fast3R:
    """The network on the second device."""
    with torch.device("meta"):
        model = Fast3R(network.config).requires_grad_(False).eval()
    weights = {name: value.to(DEVICE, dtype) for name, value in network.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    return model


def pointmaps(network: Fast3R, device: torch.device) -> list[torch.Tensor]:
    """Images through preprocessing, encoder, fusion and heads: the content of a `Reconstruction`."""
    behind = Fast3RNetwork(network)
    images = torch.stack([torch.from_numpy(frame(i).image) for i in range(VIEWS)])
    pixels, _ = prepare_images(images.to(device), WIDTH)
    # what is recorded as CUDA graphs
    tokens, _ = behind._tokens_of(pixels)
    hooks = behind._hooks_of(tokens.flatten(0, 1)[None], behind._rows(VIEWS))
    return list(behind._heads_of(GRID, VIEWS)(*hooks))


def packed(maps: list[torch.Tensor]) -> torch.Tensor:
    """The cloud of the newest view of a window."""
    window = registered([view_of(None)] * VIEWS, Reconstruction(*map(list, maps)))
    return view_records(estimate_view(window, VIEWS - 1, 0, PointsConfig()))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_from_the_pictures_to_the_packed_cloud_nothing_leaves_the_device(
    network: Fast3R, dtype: torch.dtype, tolerance: float
) -> None:
    plain = copy.deepcopy(network).to(dtype)
    with torch.no_grad(), SecondDevice() as device:
        maps = pointmaps(on_device(plain, dtype), DEVICE)
        records = packed(maps)
        assert {tensor.device for tensor in (*maps, records)} == {DEVICE}
        assert (len(device.reads), device.numbers) == (0, 0)
        found = fetch(records)
        assert len(device.reads) == 1
        on_host = [tensor.cpu() for tensor in maps]
        assert torch.equal(found, packed(on_host))
        for tensor, expected in zip(on_host, pointmaps(plain, torch.device("cpu")), strict=True):
            torch.testing.assert_close(tensor, expected, rtol=tolerance, atol=tolerance)
    _weights.cache_clear()


def made_on(device: torch.device) -> MapUpdate:
    """A window of random points put into an empty map."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(VIEWS, HEIGHT, WIDTH, 3)).astype(np.float32) * 0.1 + [0, 0, 2]
    confidence = 1 + rng.random((VIEWS, HEIGHT, WIDTH), np.float32)
    points[:, :5, :7] = np.nan
    maps = [list(torch.from_numpy(values).float().to(device)) for values in (points, confidence)]
    views = [WindowView(None, i, "a", view_of(None).encoded) for i in range(VIEWS)]
    tracked = Track(registered(views, Reconstruction(*maps, *maps)), None, None, False, np.ones(VIEWS, bool))
    return map_update(tracked, {}, (), 0, 0, MapperConfig())


def messages(fusion: MapUpdate) -> list[bytes]:
    """Contents of the messages of a window, and of its keyframes."""
    newest = fusion.estimates[-1].maps
    parts = [view_bytes(fusion.estimates[-1]).tobytes()]
    parts += [image.tobytes() for image in (newest.confidence_image(), newest.depth_image())]
    parts.append(np.array(mean_values([view.maps for view in fusion.estimates]), np.float32).tobytes())
    for keyframe in fusion.keyframes:
        assert keyframe.points is not None
        parts += [keyframe.points.points.tobytes(), keyframe.points.confidence.tobytes()]
    return parts


def test_keyframes_and_messages_take_one_copy_each() -> None:
    expected = messages(made_on(torch.device("cpu")))
    with SecondDevice() as device:
        fusion = made_on(DEVICE)
        assert len(device.reads) == 1  # the points of all keyframes of the window
        newest = fusion.estimates[-1]
        for number, message in enumerate(
            (
                lambda: view_bytes(newest),
                newest.maps.confidence_image,
                newest.maps.depth_image,
                lambda: mean_values([view.maps for view in fusion.estimates]),
                lambda: (newest.points_camera, newest.confidence, newest.valid),  # all properties
            ),
            start=2,
        ):
            message()
            assert len(device.reads) == number
        assert device.numbers == 0
        assert messages(fusion) == expected


def test_results_are_copied_out_of_the_pinned_memory_once() -> None:
    values = [np.arange(5, dtype=np.uint8), np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)]
    with SecondDevice() as device:
        arrays = to_host(*(torch.from_numpy(each).to(DEVICE) for each in values))
    assert device.reads == [sum(each.nbytes for each in values)]
    for array, expected in zip(arrays, values, strict=True):
        np.testing.assert_array_equal(array, expected)
        array[...] = 0  # may be written to
        assert not array.flags.owndata  # uses the memory of the transferred tensor, without another copy
        assert torch.from_numpy(array).untyped_storage().nbytes() == expected.nbytes


def test_publishing_precedes_the_next_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of the network's priority would wait behind its attention; the lower number has priority."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device, priority=0: (str(device), priority))
    made = view_maps._side_stream.__wrapped__(torch.device("cuda:1"))
    assert made == ("cuda:1", -1) == view_maps.urgent_stream(torch.device("cuda:1"))


@pytest.mark.parametrize("views", [2, 5])
def test_a_warm_up_runs_all_steps_after_the_network(views: int) -> None:
    """It does not change its input, and is not part of any map."""
    shapes = [(HEIGHT, WIDTH)] * (views - 1) + [(WIDTH, HEIGHT)]
    points = [torch.full((*shape, 3), torch.nan) for shape in shapes]
    confidence = [torch.ones(shape) for shape in shapes]
    random_state = torch.get_rng_state()
    fusion = warm_up_mapping(Reconstruction(points, confidence, points, confidence), MapperConfig())
    assert all(map.isnan().all() for map in points)
    assert torch.equal(torch.get_rng_state(), random_state)
    new = min(MapperConfig().window.stride, views - 1)
    assert len(fusion.views) == new  # the others were fitted again
    assert len(fusion.keyframes) == views
    for estimate in fusion.estimates:
        assert estimate.valid.mean() > 0.5
        np.testing.assert_allclose(estimate.map_from_camera, np.eye(4), atol=1e-3)


def test_a_rehearsal_is_of_the_device() -> None:
    with SecondDevice() as device:
        maps = (
            [torch.zeros(HEIGHT, WIDTH, 3).to(DEVICE)] * VIEWS,
            [torch.ones(HEIGHT, WIDTH).to(DEVICE)] * VIEWS,
        )
        fusion = warm_up_mapping(Reconstruction(*maps, *maps), MapperConfig())
        assert {estimate.maps.points.device for estimate in fusion.estimates} == {DEVICE}
    assert {"sort", "searchsorted", "baddbmm", "index_copy_"} <= set(device.launched)
