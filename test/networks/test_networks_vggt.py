"""VGGT with random weights: upstream's own code, on the CPU, through our adapter."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_vggt import small_vggt

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.calibration import FocalLengths, network_focals
from fast3r_ros.mapping.config import RegistrationConfig
from fast3r_ros.mapping.data import Frame
from fast3r_ros.mapping.registration import place_views
from fast3r_ros.mapping.tracking import unusable_result
from fast3r_ros.mapping.window import WindowView
from fast3r_ros.model.safetensors import write_safetensors
from fast3r_ros.networks import NetworkOptions, load_network
from fast3r_ros.networks.vggt import WHERE, VggtNetwork
from fast3r_ros.synthetic.sequence import demo_sequence

SIZE = 112  # pixels; 8 patches


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    if importlib.util.find_spec("vggt") is None:
        pytest.skip(f"vggt is not installed here; {WHERE}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield small_vggt()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def views(model: Any) -> list[WindowView]:
    adapter, walk = VggtNetwork(model, SIZE), demo_sequence(2.0)
    frames = [Frame(i, "a", walk[5 * i].image) for i in range(4)]
    return [WindowView.of(frame, adapter.encode(frame)) for frame in frames]


def test_points_are_upstreams(model: Any, views: list[WindowView]) -> None:
    from vggt.utils.geometry import unproject_depth_map_to_point_map
    from vggt.utils.pose_enc import pose_encoding_to_extri_intri

    encoded = [view.encoded for view in views]
    maps = VggtNetwork(model, SIZE).reconstruct(encoded)
    assert unusable_result(views, maps) == ""
    assert not maps.metric
    assert maps.intrinsics is not None
    with torch.inference_mode():
        raw = model(torch.stack([view.tokens for view in encoded])[None])
    height, width = encoded[0].image.shape[:2]
    extrinsics, intrinsics = pose_encoding_to_extri_intri(raw["pose_enc"], (height, width))
    world = unproject_depth_map_to_point_map(raw["depth"][0], extrinsics[0], intrinsics[0])
    first = extrinsics[0, 0].double().numpy()
    rows, columns = np.indices((height, width)) + 0.5
    for i in range(len(views)):
        # upstream's pixels are at integers: half a pixel beside ours
        shift = np.array([0.5, 0.5]) / np.diag(intrinsics[0, i].numpy())[:2]
        depth = raw["depth"][0, i, ..., 0].double().numpy()
        camera_from_world = extrinsics[0, i].double().numpy()
        local = world[i].reshape(-1, 3) @ camera_from_world[:, :3].T + camera_from_world[:, 3]
        local[:, :2] += shift * depth.reshape(-1, 1)
        np.testing.assert_allclose(maps.points_local[i].reshape(-1, 3), local, rtol=1e-3, atol=1e-3)
        back = (local - camera_from_world[:, 3]) @ camera_from_world[:, :3] @ first[:, :3].T + first[:, 3]
        np.testing.assert_allclose(maps.points_global[i].reshape(-1, 3), back, rtol=1e-2, atol=2e-3)
        torch.testing.assert_close(maps.confidence_local[i], raw["depth_conf"][0, i])
        assert maps.confidence_local[i].min() >= 1.0
        assert np.linalg.norm(views[i].encoded.descriptor) == pytest.approx(1.0, abs=1e-5)
        pixels = maps.points_local[i].double().numpy() @ maps.intrinsics[i].T  # a point projects to its pixel
        np.testing.assert_allclose(pixels[..., 0] / pixels[..., 2], columns, atol=1e-2)
        np.testing.assert_allclose(pixels[..., 1] / pixels[..., 2], rows, atol=1e-2)


def test_the_mapper_takes_its_poses_and_focal_length(model: Any, views: list[WindowView]) -> None:
    maps = VggtNetwork(model, SIZE).reconstruct([view.encoded for view in views])
    focal = network_focals(views, maps)
    width = views[0].encoded.image.shape[1]
    assert 0.3 * width < focal[0] < 3 * width
    cameras = FocalLengths().after(views, focal).cameras(views, focal)
    poses = place_views(maps, cameras, RegistrationConfig())
    assert poses.ok.all(), poses.reasons
    np.testing.assert_allclose(poses.window_from_camera[0], np.eye(4), atol=1e-6)


def test_views_of_several_sizes_keep_their_pixels(model: Any) -> None:
    adapter, rng = VggtNetwork(model, SIZE), np.random.default_rng(1)
    wide, high = ((84, 112, 3), (112, 56, 3))
    images = [rng.integers(0, 256, size, np.uint8) for size in (wide, high)]
    frames = [Frame(i, str(i), image) for i, image in enumerate(images)]
    encoded = [adapter.encode(frame) for frame in frames]
    maps = adapter.reconstruct(encoded)
    assert maps.intrinsics is not None
    for view, points, matrix in zip(encoded, maps.points_local, maps.intrinsics, strict=True):
        height, width = view.image.shape[:2]
        np.testing.assert_allclose(matrix[:2, 2], [width / 2, height / 2])
        pixels = points.double().numpy() @ matrix.T
        columns = np.indices((height, width))[1] + 0.5
        np.testing.assert_allclose(pixels[..., 0] / pixels[..., 2], columns, atol=1e-2)


def test_weights_are_loaded_from_a_file_without_the_heads_that_are_not_used(
    model: Any, views: list[WindowView], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vggt.models.vggt

    empty = small_vggt()
    monkeypatch.setattr(vggt.models.vggt, "VGGT", lambda **heads: empty)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    more = {"track_head.norm.weight": torch.ones(4), "point_head.norm.weight": torch.ones(4)}
    write_safetensors(tmp_path / "model.safetensors", {**state, **more}, {})
    loaded = load_network(
        f"vggt:{tmp_path / 'model.safetensors'}", NetworkOptions(device="cpu", image_size=SIZE)
    )
    encoded = [view.encoded for view in views]
    found, wanted = (each.reconstruct(encoded) for each in (loaded, VggtNetwork(model, SIZE)))
    torch.testing.assert_close(list(found.points_global), list(wanted.points_global))
    with pytest.raises(UserError, match=r"vggt:huge is unknown; give vggt:1b \(noncommercial\)"):
        load_network("vggt:huge", NetworkOptions(device="cpu"))


def test_a_missing_package_is_reported_with_its_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vggt", None)
    for name in [name for name in sys.modules if name.startswith("vggt.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        UserError, match=r"not on PyPI; installation: https://github\.com/facebookresearch/vggt"
    ):
        load_network("vggt:1b", NetworkOptions(device="cpu"))
