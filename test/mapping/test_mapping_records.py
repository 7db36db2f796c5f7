"""Packed points are, byte for byte, what NumPy writes into a structured array, and packing is not slower."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fast3r_ros.mapping.data import Cloud, ViewEstimate
from fast3r_ros.mapping.point_records import cloud_bytes, view_bytes
from fast3r_ros.mapping.view_maps import ViewMaps, apart, together

POINT = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("rgb", "u4"), ("confidence", "f4")])


def reference(cloud: Cloud) -> bytes:
    points = np.empty(len(cloud.points), POINT)
    for axis, name in enumerate("xyz"):
        points[name] = cloud.points[:, axis]
    red, green, blue = cloud.colors.astype(np.uint32).T
    points["rgb"] = red << 16 | green << 8 | blue
    points["confidence"] = cloud.confidence
    return points.tobytes()


def random_view(height: int, width: int, seed: int, share: float = 0.8, scale: float = 1.0) -> ViewEstimate:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(height, width, 3)).astype(np.float32)
    valid = rng.random((height, width)) < share
    points[~valid & (rng.random((height, width)) < 0.5)] = np.nan
    confidence = 1 + rng.random((height, width), np.float32)
    maps = ViewMaps.of_arrays(points, confidence, valid).scaled(scale)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return ViewEstimate(
        0, 0, "a", np.eye(4), np.eye(6), np.eye(3), np.eye(3), image=image, maps=maps
    )  # fmt: skip


def valid_cloud(view: ViewEstimate) -> Cloud:
    return Cloud(view.points_camera[view.valid], view.image[view.valid], view.confidence[view.valid])


@settings(deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    scale=st.floats(1e-3, 1e3),
)
def test_the_valid_points_of_a_view_are_packed(
    height: int, width: int, seed: int, share: float, scale: float
) -> None:
    view = random_view(height, width, seed, share, scale)
    assert view_bytes(view).tobytes() == reference(valid_cloud(view))


@settings(deadline=None)
@given(count=st.integers(0, 50), seed=st.integers(0, 1000))
def test_a_cloud_is_packed(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3)).astype(np.float32)
    cloud = Cloud(points, rng.integers(0, 256, (count, 3), np.uint8), rng.random(count, np.float32))
    assert cloud_bytes(cloud).tobytes() == reference(cloud)
    every_other = Cloud(points[::2], cloud.colors[::2], cloud.confidence[::2])
    assert cloud_bytes(every_other).tobytes() == reference(every_other)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 4), max_size=3),
            st.sampled_from([torch.float32, torch.bool, torch.uint8, torch.float64, torch.int32]),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_tensors_transferred_together_are_separated_unchanged(parts: list) -> None:
    tensors = [(torch.rand(shape) * 5).to(dtype) for shape, dtype in parts]
    for found, tensor in zip(apart(together(tensors), tensors), tensors, strict=True):
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor)


def processor_time(action: Callable[[], object], runs: int = 7) -> float:
    times = []
    for _ in range(runs):
        start = time.thread_time()
        action()
        times.append(time.thread_time() - start)
    return min(times)


def test_packing_a_view_costs_no_more_than_numpy_does() -> None:
    view = random_view(384, 512, 0)
    cloud = valid_cloud(view)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert view_bytes(view).tobytes() == reference(cloud)
        ours = processor_time(lambda: view_bytes(view))
        plain = processor_time(lambda: reference(valid_cloud(view)))
    finally:
        torch.set_num_threads(threads)
    print(f"packing a view of 512x384: {ours * 1e3:.1f} ms, with NumPy {plain * 1e3:.1f} ms")
    assert ours < 1.5 * plain  # half of it on an idle machine


def test_a_kept_view_holds_no_memory_of_others() -> None:
    points, confidence = torch.rand(8, 6, 4, 3), torch.rand(8, 6, 4) + 1
    views = [ViewMaps(*maps, scale=2.0) for maps in zip(points, confidence, strict=True)]
    kept = views[3].own_copy()
    for tensor, other in ((kept.points, 2 * points[3]), (kept.confidence, confidence[3])):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        assert torch.equal(tensor, other)
    assert torch.equal(kept.valid, views[3].valid)
    assert np.array_equal(kept.depth_image(), views[3].depth_image(), equal_nan=True)
    half = views[3].scaled(0.5)
    assert half.scale == 1.0
    assert torch.equal(half.valid, views[3].valid)
