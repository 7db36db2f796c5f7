"""Keyframe selection, overload, point filters."""

import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fast3r_ros.mapping.config import KeyframeConfig, PointsConfig
from fast3r_ros.mapping.data import Frame
from fast3r_ros.mapping.inbox import FrameIntake, Waiting, without_least_motion
from fast3r_ros.mapping.keyframes import KeyframeSelector, image_motion, small_grey
from fast3r_ros.mapping.points import depth_edges, grid_pixels, valid_points

SECOND = 1_000_000_000


def texture(shift=0, seed=0, size=(120, 160)):
    rng = np.random.default_rng(seed)
    noise = rng.uniform(0, 255, (40, 80, 3)).astype(np.float32)
    large = cv2.resize(noise, (640, 320), interpolation=cv2.INTER_CUBIC)
    return np.clip(large[: size[0], 100 + shift : 100 + shift + size[1]], 0, 255).astype(np.uint8)


def frame(seconds, image, camera="a"):
    return Frame(round(seconds * SECOND), camera, image)


@pytest.mark.parametrize("shift", [0, 1, 4, 12])
def test_image_motion_is_the_shift(shift):
    motion = image_motion(small_grey(texture()), small_grey(texture(shift)))
    assert motion == pytest.approx(shift / 160, abs=0.003)


def test_another_scene_is_all_motion():
    assert image_motion(small_grey(texture()), small_grey(np.zeros((120, 200, 3), np.uint8))) == 1.0


def test_every_reason():
    selector = KeyframeSelector(KeyframeConfig(min_interval=0.05, max_interval=5.0))
    blurred = cv2.GaussianBlur(texture(60), (0, 0), 6)
    offers = [
        (0.0, texture(), ""),
        (0.0, texture(40), "duplicate"),
        (-1.0, texture(40), "out_of_order"),
        (0.01, texture(40), "too_soon"),
        (0.1, texture(3), "no_motion"),
        (0.2, texture(40), ""),
        (0.3, np.full((120, 160, 3), 128, np.uint8), "featureless"),
        (0.4, np.zeros((120, 160, 3), np.uint8), "exposure"),
        (0.5, np.full((120, 160, 3), 254, np.uint8), "exposure"),
        *((0.6 + 0.01 * i, texture(40), "no_motion") for i in range(4)),
        (0.8, blurred, "blurred"),
        (5.3, texture(40), ""),
    ]
    for seconds, image, expected in offers:
        assert selector.judge(frame(seconds, image))[0] == expected, seconds


def test_cameras_are_judged_apart():
    selector = KeyframeSelector(KeyframeConfig())
    assert selector.judge(frame(1, texture()))[0] == ""
    assert selector.judge(frame(0.5, texture(), "b"))[0] == ""
    assert selector.judge(frame(0.98, texture(), "b"))[0] == "no_motion"


def test_simultaneous_images_stay_together():
    selector = KeyframeSelector(KeyframeConfig())
    assert selector.judge(frame(1, texture()))[0] == ""
    assert selector.judge(frame(1.001, texture(), "b"))[0] == ""
    assert selector.judge(frame(2, texture(40)))[0] == ""
    assert selector.judge(frame(2.001, texture(), "b"))[0] == ""  # though nothing moved there
    assert selector.judge(frame(2.01, texture(), "b"))[0] == "no_motion"


def smeared(image, length, angle):
    """The image of a camera that moves during exposure: blurred along one direction."""
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1
    turn = cv2.getRotationMatrix2D(((length - 1) / 2, (length - 1) / 2), angle, 1)
    kernel = cv2.warpAffine(kernel, turn, (length, length))
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def detailed(shift=0):
    """Texture of all sizes, with sensor noise."""
    rng = np.random.default_rng(3)
    sizes = [(160, 320, 25.0), (80, 160, 30.0), (20, 40, 40.0)]
    layers = [
        cv2.resize(rng.normal(0, power, (rows, columns)).astype(np.float32), (640, 320))
        for rows, columns, power in sizes
    ]
    grey = 128 + sum(layers)[:120, 100 + shift : 260 + shift]
    return np.clip(np.repeat(grey[..., None], 3, axis=2), 0, 255).astype(np.uint8)


def walk(step=6, count=60):
    """Images of a camera that moves by `step` pixels of 160 per frame, back and forth."""
    path = np.abs(np.arange(count) * step % 600 - 300)
    return [detailed(int(shift)) for shift in path]


def noisy(image, seed):
    rng = np.random.default_rng(seed)
    return np.clip(image + rng.normal(0, 1, image.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("gain", [0.3, 0.6, 1.3, 1.5])
@pytest.mark.parametrize("offset", [0, 25])
def test_an_exposure_step_drops_no_sharp_frame(gain, offset):
    intake = FrameIntake(KeyframeConfig(), capacity=1000)
    for i, image in enumerate(walk()):
        if 20 <= i < 40:
            image = np.clip(image.astype(np.float32) * gain + offset, 0, 255).astype(np.uint8)
        intake.offer(frame(0.1 * i, image))
    assert "blurred" not in intake.counts()[1]


@pytest.mark.parametrize(
    "step", [pytest.param(3, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow), 15]
)
def test_sharp_frames_of_views_with_ever_less_detail_are_not_blurred(step):
    """From fine grain to smooth surfaces and back, as on a walk from shelves along a painted wall."""
    rng = np.random.default_rng(5)
    grain = rng.normal(0, 30.0, (120, 1000)).astype(np.float32)
    shapes = cv2.resize(rng.normal(0, 40.0, (15, 125)).astype(np.float32), (1000, 120))
    grey = np.clip(128 + shapes + grain * np.geomspace(1, 0.02, 1000), 0, 255).astype(np.uint8)
    places = np.r_[0:840:step, 840:0:-step]
    intake = FrameIntake(KeyframeConfig(), capacity=1000)
    for i, place in enumerate(places):
        intake.offer(frame(0.1 * i, np.repeat(grey[:, place : place + 160, None], 3, axis=2)))
    assert "blurred" not in intake.counts()[1]


@pytest.mark.parametrize("blur", ["gauss", 0, 45, 90])
@pytest.mark.parametrize("step", [4, pytest.param(15, marks=pytest.mark.slow)])
def test_of_a_half_blurred_recording_hardly_a_keyframe_is_blurred(blur, step):
    rng = np.random.default_rng(0)
    images = walk(step, 90)
    bad = rng.random(len(images)) < 0.5
    intake = FrameIntake(KeyframeConfig(), capacity=1000)
    for i, image in enumerate(images):
        if bad[i]:
            image = cv2.GaussianBlur(image, (0, 0), 2) if blur == "gauss" else smeared(image, 9, blur)
        intake.offer(frame(0.1 * i, noisy(image, i)))
    chosen = np.array([round(each.stamp_ns / SECOND / 0.1) for each in intake.take()])
    # at 15 pixels per frame a blurred one is sometimes accepted, if no sharp one connects to the last
    assert bad[chosen].mean() <= (0.05 if step == 4 else 0.15)
    covered = np.diff(chosen)
    assert len(chosen) >= 0.4 * (~bad).sum() * min(1, step / 9.6)
    assert covered.max() <= 12


def test_a_sharper_frame_of_the_same_takes_the_place_of_a_keyframe_that_waits():
    dull, sharp = cv2.GaussianBlur(detailed(), (0, 0), 1.2), detailed(1)
    intake = FrameIntake(KeyframeConfig(), capacity=9)
    assert intake.offer(frame(0.0, dull)) == ""
    assert intake.offer(frame(0.1, dull)) == "no_motion"
    assert intake.offer(frame(0.2, sharp)) == ""
    assert intake.offer(frame(0.3, sharp)) == "no_motion"
    assert intake.newest.stamp_ns == round(0.2 * SECOND)
    assert intake.counts() == (4, {"no_motion": 3})
    assert [each.stamp_ns for each in intake.take()] == [round(0.2 * SECOND)]


def test_a_keyframe_that_is_taken_or_has_a_partner_keeps_its_place():
    dull, sharp = cv2.GaussianBlur(detailed(), (0, 0), 1.2), detailed(1)
    intake = FrameIntake(KeyframeConfig(), capacity=9)
    intake.offer(frame(0.0, dull))
    intake.take()
    assert intake.offer(frame(0.1, sharp)) == "no_motion"
    intake = FrameIntake(KeyframeConfig(), capacity=9)
    intake.offer(frame(0.0, dull))
    intake.offer(frame(0.001, dull, "b"))
    assert intake.offer(frame(0.1, sharp)) == "no_motion"
    assert intake.waiting == 2


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_thinning_keeps_the_newest_the_order_and_the_coverage(motions):
    waiting = [Waiting(frame(i, np.zeros((1, 1, 3), np.uint8)), motion) for i, motion in enumerate(motions)]
    rest = without_least_motion(waiting)
    assert len(rest) == len(waiting) - 1
    assert rest[-1].frame is waiting[-1].frame
    assert [w.frame.stamp_ns for w in rest] == sorted(w.frame.stamp_ns for w in rest)
    assert sum(w.motion for w in rest) == pytest.approx(sum(motions))


def test_overload_drops_and_counts_and_the_newest_waits():
    intake = FrameIntake(KeyframeConfig(), capacity=5)
    for i in range(30):
        intake.offer(frame(i * 0.1, texture(12 * i)))
        assert intake.newest.stamp_ns == round(i * 0.1 * SECOND)
    received, dropped = intake.counts()
    assert received == 30
    assert dropped == {"overload": 25}
    taken = intake.take()
    assert len(taken) == 5
    assert taken[0].stamp_ns < 1.5 * SECOND  # the kept frames cover the path, not only its end
    assert intake.waiting == 0


def test_fewer_wait_after_the_window_became_smaller():
    intake = FrameIntake(KeyframeConfig(), capacity=8)
    for i in range(8):
        intake.offer(frame(i * 0.1, texture(12 * i)))
    intake.set_config(KeyframeConfig(), 3)
    assert intake.waiting == 3
    assert intake.counts() == (8, {"overload": 5})


def test_selection_costs_little_per_frame():
    selector = KeyframeSelector(KeyframeConfig())
    images = [cv2.resize(texture(3 * i), (640, 480)) for i in range(20)]
    start = time.thread_time()
    for i, image in enumerate(images):
        selector.judge(frame(i * 0.1, image))
    assert (time.thread_time() - start) / len(images) < 0.02  # seconds; about 2 ms on an idle machine


def test_frames_from_several_threads_are_all_counted():
    from concurrent.futures import ThreadPoolExecutor

    intake = FrameIntake(KeyframeConfig(), capacity=8)
    images = [texture(12 * i) for i in range(20)]
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(lambda c: [intake.offer(frame(i, images[i], c)) for i in range(20)], c)
            for c in "abcd"
        ]
        [job.result() for job in jobs]
    received, dropped = intake.counts()
    assert received == 80
    assert sum(dropped.values()) + intake.waiting == 80


def wall(height=40, width=60, depth=2.0):
    columns, rows = torch.meshgrid(
        torch.linspace(-1, 1, width), torch.linspace(-0.7, 0.7, height), indexing="xy"
    )
    points = torch.stack([columns, rows, torch.ones_like(rows)], -1) * depth
    return points, torch.full((height, width), 5.0)


def test_good_points_are_kept():
    points, confidence = wall()
    assert valid_points(points, confidence, PointsConfig()).all()


def test_bad_points_are_dropped():
    points, confidence = wall()
    points[5, 5], points[6, 20, 2], confidence[20, 30] = torch.nan, -1, 1.0
    points[30:, 50:] *= 20  # far behind everything
    valid = valid_points(points, confidence, PointsConfig(drop_share=0.01))
    for bad in ((5, 5), (6, 20), (20, 30), (35, 55)):
        assert not valid[bad]
    assert valid[20, 20]
    assert valid_points(torch.full_like(points, torch.nan), confidence, PointsConfig()).sum() == 0


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_the_sky_is_dropped_also_where_it_fills_most_of_the_view(share):
    """Networks place it far away with less confidence; the confidence alone removes none of its pixels."""
    points, confidence = wall()
    sky = round(share * len(points))
    points[:sky] *= 40
    confidence[:sky] = 1.2 + 0.1 * torch.rand(
        confidence[:sky].shape, generator=torch.Generator().manual_seed(0)
    )
    valid = valid_points(points, confidence, PointsConfig())
    assert not valid[:sky].any()
    assert valid[sky + 1 :].all()


def test_depth_edges_are_where_the_depth_jumps():
    depth = torch.full((20, 20), 2.0)
    depth[:, 10:] = 4.0
    edges = depth_edges(depth, torch.ones(20, 20, dtype=torch.bool), 0.1)
    assert edges[:, 9:11].all()
    assert not edges[:, :9].any()
    assert not edges[:, 11:].any()


def test_unusable_odometry_gives_no_edge():
    depth, usable = torch.full((20, 20), 2.0), torch.ones(20, 20, dtype=torch.bool)
    depth[5, 5], depth[9, 9], depth[12, 12] = torch.nan, 1e6, -3.0
    usable[5, 5] = usable[9, 9] = usable[12, 12] = False
    assert not depth_edges(depth, usable, 0.1).any()


@given(st.floats(0, 0.6))
def test_the_least_confident_share_is_dropped(share):
    points, confidence = wall()
    confidence = 1 + torch.rand(confidence.shape, generator=torch.Generator().manual_seed(0))
    valid = valid_points(points, confidence, replace(PointsConfig(), drop_share=share))
    assert float(valid.float().mean()) == pytest.approx(1 - share, abs=0.02)
    assert confidence[valid].min() >= (confidence[~valid].max() if (~valid).any() else 0)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 5000))
def test_the_pixel_grid_is_within_its_bound_and_the_image(height, width, most):
    pixels = grid_pixels(height, width, most)
    assert 1 <= len(pixels) <= max(most, 1)
    assert pixels.min() >= 0
    assert pixels.max() < height * width
    assert len(np.unique(pixels)) == len(pixels)
