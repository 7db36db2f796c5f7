"""Preprocessing: official sizes and pixels, the transform for intrinsics, and the path on any device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fast3r_ros.errors import UserError
from fast3r_ros.evaluation import golden
from fast3r_ros.model import normalize, prepare_image, prepare_images
from fast3r_ros.model.preprocess import plan_resize

FOLDER = Path(__file__).parents[1] / "golden" / "preprocess"
few = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("number", range(5))
def test_golden_case_is_exact(number: int) -> None:
    case = golden._read(FOLDER / "case.json")[number]
    assert golden.check_preprocess(FOLDER, case, "cpu")[0] == 0


@pytest.mark.parametrize(
    ("source", "long_side", "expected"),
    [
        ((640, 480), 512, (512, 384)),
        ((1280, 720), 512, (512, 288)),
        ((480, 640), 512, (384, 512)),
        ((500, 500), 512, (512, 384)),
        ((1000, 999), 512, (512, 496)),
        ((600, 599), 512, (512, 496)),
        ((33, 517), 512, (32, 512)),
        ((641, 479), 512, (512, 368)),
        ((848, 480), 512, (512, 288)),
        ((300, 300), 224, (224, 160)),
    ],
)
def test_official_sizes(source: tuple[int, int], long_side: int, expected: tuple[int, int]) -> None:
    assert plan_resize(*source, long_side).size == expected


@few
@given(
    width=st.integers(20, 900), height=st.integers(20, 900), long_side=st.sampled_from([96, 224, 400, 512])
)
def test_sides_are_multiples_of_16_and_the_transform_maps_the_crop(
    width: int, height: int, long_side: int
) -> None:
    try:
        plan = plan_resize(width, height, long_side)
    except UserError:
        assert min(width, height) * long_side / max(width, height) < 17
        return
    assert plan.size[0] % 16 == plan.size[1] % 16 == 0
    corners = np.array([[0, 0, 1], [*plan.size, 1]]).T
    left, top, *_ = source = np.linalg.solve(plan.pixel_transform, corners)[:2].T.flatten()
    assert left >= -1e-9
    assert top >= -1e-9
    assert source[2] <= width + 1e-9
    assert source[3] <= height + 1e-9


def test_a_marked_place_moves_as_the_transform_says() -> None:
    y, x = np.mgrid[:300, :400] + 0.5
    centre = np.array([290.3, 120.8])
    blob = 255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * 12**2))
    image = np.repeat(blob[..., None], 3, axis=2).round().astype(np.uint8)
    for long_side in (224, 640):
        prepared = prepare_image(image, long_side)
        weights = prepared.pixels[..., 0].astype(float)
        rows, columns = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
        found = np.array([(weights * columns).sum(), (weights * rows).sum()]) / weights.sum()
        np.testing.assert_allclose(found, (prepared.pixel_transform @ [*centre, 1])[:2], atol=0.1)


@few
@given(
    width=st.integers(24, 500),
    height=st.integers(24, 500),
    long_side=st.sampled_from([96, 224, 512]),
    seed=st.integers(0, 99),
)
def test_any_device_path_is_within_two_grey_levels_of_pillow(
    width: int, height: int, long_side: int, seed: int
) -> None:
    assume(height < 1.9 * width)  # Pillow resizes taller images columns first
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    try:
        exact = prepare_image(noise, long_side)
    except UserError:
        return
    pixels, transform = prepare_images(torch.from_numpy(noise)[None], long_side)
    difference = np.abs(pixels[0].numpy().astype(int) - exact.pixels)
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01
    np.testing.assert_array_equal(transform, exact.pixel_transform)


def test_normalize_spans_minus_one_to_one() -> None:
    pixels = np.array([[[0, 128, 255]]], dtype=np.uint8)
    expected = torch.tensor([-1.0, 2 * 128 / 255 - 1, 1.0])[:, None, None]
    torch.testing.assert_close(normalize(pixels), expected)
    torch.testing.assert_close(normalize(torch.from_numpy(pixels)[None]), expected[None])


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((20, 20, 3), dtype=np.float32),
        np.zeros((20, 20, 4), dtype=np.uint8),
        np.zeros((20, 20), dtype=np.uint8),
    ],
)
def test_another_type_or_shape_is_rejected(image: np.ndarray) -> None:
    with pytest.raises(UserError, match="expected uint8"):
        prepare_image(image, 224)
    with pytest.raises(UserError, match="expected uint8"):
        prepare_images(torch.from_numpy(image)[None], 224)


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (0, 5)])
def test_an_image_that_would_vanish_is_rejected(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=f"{size[0]}x{size[1]} pixels cannot become 224"):
        plan_resize(*size, 224)
