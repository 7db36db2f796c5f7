"""The real network (with random weights) behind the mapper's interface."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import small_model

from fast3r_ros.errors import UserError
from fast3r_ros.io.sources import open_source
from fast3r_ros.mapping.config import MapperConfig
from fast3r_ros.mapping.data import Frame
from fast3r_ros.mapping.mapper import Mapper
from fast3r_ros.mapping.network import Fast3RNetwork
from fast3r_ros.model import Fast3R
from fast3r_ros.model.preprocess import normalize
from fast3r_ros.synthetic.sequence import demo_sequence


def frames(count, size=(48, 64), seed=0):
    rng = np.random.default_rng(seed)
    intrinsics = np.array([[60.0, 0, size[1] / 2], [0, 60.0, size[0] / 2], [0, 0, 1]])
    return [
        Frame(i * 100_000_000, "a", rng.integers(0, 256, (*size, 3)).astype(np.uint8), intrinsics)
        for i in range(count)
    ]


def test_cached_tokens_give_what_the_network_gives_in_one_go():
    model = small_model()
    network = Fast3RNetwork(model)
    views = [network.encode(frame) for frame in frames(3)]
    result = network.reconstruct(views)
    with torch.inference_mode():
        expected = model([normalize(view.image)[None] for view in views])
    for i, prediction in enumerate(expected):
        np.testing.assert_allclose(
            result.points_global[i], prediction.global_points.points[0], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            result.points_local[i], prediction.local_points.points[0], rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            result.confidence_global[i], prediction.global_points.confidence[0], rtol=1e-4
        )
    again = network.reconstruct(views)
    assert all(map(torch.equal, result.points_global, again.points_global))


def test_the_encoded_view_has_its_size_and_intrinsics():
    network = Fast3RNetwork(small_model())
    frame = frames(1, size=(120, 160))[0]
    view = network.encode(frame)
    assert view.image.shape == (48, 64, 3)
    assert np.allclose(view.intrinsics, view.network_from_image @ frame.intrinsics)
    assert np.linalg.norm(view.descriptor) == pytest.approx(1, abs=1e-5)
    again = network.encode(Frame(0, "a", view.image, view.intrinsics))
    assert np.array_equal(again.image, view.image)
    assert np.allclose(again.descriptor, view.descriptor)


def test_without_a_local_head_the_local_points_come_from_the_global_ones():
    network = Fast3RNetwork(small_model(head_with_local_head=False))
    result = network.reconstruct([network.encode(frame) for frame in frames(2)])
    assert [view.shape for view in result.points_local] == [(48, 64, 3)] * 2


def test_unusable_images_are_named():
    with pytest.raises(UserError):
        Fast3RNetwork(small_model()).encode(Frame(0, "a", np.zeros((48, 64), np.uint8)))


@pytest.mark.parametrize("local_head", [True, False])
def test_views_of_one_window_may_differ_in_size(local_head):
    network = Fast3RNetwork(small_model(head_with_local_head=local_head))
    views = [network.encode(frames(1, size=size)[0]) for size in ((48, 64), (64, 48), (32, 64))]
    result = network.reconstruct(views)
    sizes = [view.image.shape[:2] for view in views]
    assert len(set(sizes)) == 3
    for maps in (result.points_global, result.points_local):
        assert [tuple(view.shape) for view in maps] == [(*size, 3) for size in sizes]
    for maps in (result.confidence_global, result.confidence_local):
        assert [tuple(view.shape) for view in maps] == sizes


def test_a_network_that_knows_nothing_does_not_break_the_mapper():
    window = {"window.size": 6, "window.stride": 2, "window.overlap": 2}
    config = MapperConfig.from_flat({**window, "keyframes.max_similarity": 1.0})
    mapper = Mapper(Fast3RNetwork(small_model()), config)
    results = []
    for frame in frames(24):
        mapper.add_frame(frame)
        if mapper.window_ready():
            results.append(mapper.process_window())
    mapper.finish()
    assert results
    status = mapper.status()
    assert status.received == 24
    assert status.keyframes + sum(status.dropped.values()) <= 24
    assert all(result.reason or result.views for result in results)
    for pose in mapper.trajectory():
        assert np.isfinite(pose.map_from_camera).all()
    assert np.isfinite(mapper.map.cloud().points).all()


CLIP = Path(__file__).resolve().parents[3] / "shared" / "data" / "kitchen.mp4"


def test_a_stationary_camera_is_redundant_and_a_slow_walk_through_a_real_kitchen_is_not():
    network = Fast3RNetwork(Fast3R.from_pretrained("demo"))
    bound = network.descriptors.redundant
    rng = np.random.default_rng(0)
    still = demo_sequence()[0]
    noisy = np.clip(still.image + rng.normal(0, 3, still.image.shape), 0, 255).astype(np.uint8)
    pictures = [network.encode(frame) for frame in (still, replace(still, image=noisy))]
    assert pictures[0].descriptor @ pictures[1].descriptor > bound
    if not CLIP.is_file():
        pytest.skip(f"{CLIP} is not there: the slow way was not tried")
    source = open_source(str(CLIP))
    first, last = (network.encode(frame) for frame in source.frames([0, len(source) - 1]))
    assert first.descriptor @ last.descriptor < bound


def test_the_new_views_of_a_window_are_encoded_in_one_go(monkeypatch):
    """An unusable frame is counted and does not affect others."""
    network = Fast3RNetwork(small_model())
    batches = []
    together = network.encode_prepared
    monkeypatch.setattr(
        network, "encode_prepared", lambda views, lap: batches.append(len(views)) or together(views, lap)
    )
    everything = MapperConfig.from_flat(
        {
            "keyframes.motion": 0.0,
            "keyframes.sharpness": 0.0,
            "keyframes.contrast": 0.0,
            "loop.enabled": False,
        }
    )
    mapper = Mapper(network, everything)
    seen = frames(4)
    seen[1] = replace(seen[1], image=seen[1].image.repeat(9, axis=0))  # too long and narrow for the network
    for frame in seen:
        assert mapper.add_frame(frame) == ""
    mapper.process_window()
    assert batches == [3]
    status = mapper.status()
    assert status.dropped["unusable"] == 1
    assert status.received == 4
