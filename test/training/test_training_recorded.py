"""Recorded datasets in the training stream, on a tiny rendered sample in the ScanNet layout."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from fast3r_ros.datasets import PosedSequence
from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rigid import transform_points
from fast3r_ros.model import Fast3R
from fast3r_ros.synthetic.rooms import room_scene
from fast3r_ros.synthetic.sequence import SyntheticSequence, pinhole
from fast3r_ros.synthetic.trajectories import room_path
from fast3r_ros.training.objective import Objective
from fast3r_ros.training.stream import recorded_sequences, recorded_views, training_batch
from fast3r_ros.training.training_config import TrainConfig, config_from_dict

MODEL = {
    "encoder_args": {"embed_dim": 24, "depth": 1, "num_heads": 2},
    "decoder_args": {"embed_dim": 24, "enc_embed_dim": 24, "depth": 10, "num_heads": 2},
    "head_args": {
        "with_local_head": True,
        "dpt_reassemble_dims": [8, 8, 8, 8],
        "dpt_feature_dim": 8,
        "dpt_last_dim": 8,
    },
}


@pytest.fixture(scope="module")
def truth() -> SyntheticSequence:
    scene = room_scene(20_000_002)
    path = room_path(scene, 6, speed=0.2)
    return SyntheticSequence(scene, path, pinhole(160, 90, np.deg2rad(70)), 160, 90, with_depth=True)


@pytest.fixture(scope="module")
def root(truth: SyntheticSequence, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scannet")
    for folder in ("color", "depth", "pose", "intrinsic"):
        (root / "scene" / folder).mkdir(parents=True)
    for index, frame in enumerate(truth):
        cv2.imwrite(str(root / "scene" / "color" / f"{index}.png"), frame.image[..., ::-1])
        cv2.imwrite(str(root / "scene" / "depth" / f"{index}.png"), (1000 * frame.depth).astype(np.uint16))
        np.savetxt(root / "scene" / "pose" / f"{index}.txt", truth.world_from_camera[index])
    at_integers = truth.intrinsics - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    np.savetxt(root / "scene" / "intrinsic" / "intrinsic_color.txt", at_integers)
    return root


def config(root: Path, share: float, **data: object) -> TrainConfig:
    content = {
        "model": MODEL,
        "data": {"width": 64, "height": 48, "noise": 0.0, "exposure": 0.0, **data},
        "recorded": [{"dataset": "scannet", "root": str(root), "share": share}],
        "curriculum": [{"views": [3]}],
        "run": {"views_per_step": 36},
    }
    return config_from_dict(content, "test")


def test_points_of_all_views_lie_on_the_walls(root: Path, truth: SyntheticSequence) -> None:
    """Scaled and cropped views put their points on the same planes as the renderer's own."""
    batch = training_batch(config(root, 1.0), 0)
    assert batch.images.shape == (12, 3, 3, 48, 64)
    assert batch.valid.float().mean() > 0.95
    known = np.concatenate(
        [
            transform_points(pose, depth_points(truth, index)).reshape(-1, 3)
            for index, pose in enumerate(truth.world_from_camera)
        ]
    )
    tree = cKDTree(known)
    for view in range(3):
        points = transform_points(
            batch.world_from_camera[0, view].numpy(), batch.points_camera[0, view].double().numpy()
        )
        distance, _ = tree.query(points[batch.valid[0, view].numpy()])
        assert np.median(distance) < 0.03
        assert np.quantile(distance, 0.95) < 0.12


def depth_points(truth: SyntheticSequence, index: int) -> np.ndarray:
    v, u = np.mgrid[: truth.height, : truth.width] + 0.5
    matrix, depth = truth.intrinsics, truth[index].depth
    x, y = (u - matrix[0, 2]) / matrix[0, 0] * depth, (v - matrix[1, 2]) / matrix[1, 1] * depth
    return np.stack([x, y, depth], axis=-1).astype(np.float64)


def test_image_and_intrinsics_move_together(root: Path, truth: SyntheticSequence) -> None:
    """The centre crop keeps the ray through the image's centre and the focal length in pixels scales."""
    sequences = recorded_sequences("scannet", str(root))
    views = recorded_views(sequences, 2, 100, 64, 48, np.random.default_rng(0))
    scale = 48 / 90
    np.testing.assert_allclose(views.intrinsics[:, 0, 0], scale * truth.intrinsics[0, 0], rtol=1e-9)
    np.testing.assert_allclose(views.intrinsics[:, :2, 2], [[32, 24]] * 2, atol=1e-9)


def test_views_are_different_frames_of_one_window(root: Path) -> None:
    sequences = recorded_sequences("scannet", str(root))
    rng = np.random.default_rng(0)
    stamps = sequences[0].frames
    for _ in range(20):
        poses = recorded_views(sequences, 3, 4, 64, 48, rng).world_from_camera
        numbers = [
            next(i for i, frame in enumerate(stamps) if np.array_equal(frame.world_from_camera, pose))
            for pose in poses
        ]
        assert len(set(numbers)) == 3
        assert max(numbers) - min(numbers) < 4


def test_short_sequences_repeat_their_frames(root: Path) -> None:
    sequences = recorded_sequences("scannet", str(root))
    available = len(sequences[0].frames)
    poses = recorded_views(sequences, 2 * available, 100, 64, 48, np.random.default_rng(0)).world_from_camera
    _, counts = np.unique(poses, axis=0, return_counts=True)
    assert counts.tolist() == [2] * available
    alone = (PosedSequence("alone", sequences[0].frames[:1]),)
    with pytest.raises(UserError, match="two frames"):
        recorded_views(alone, 2, 100, 64, 48, np.random.default_rng(0))


def test_the_share_of_samples_is_recorded_and_every_step_repeats(root: Path) -> None:
    mixed = config(root, 0.5)
    first, again = training_batch(mixed, 3), training_batch(mixed, 3)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.image_indices, again.image_indices)
    assert len(first.images) == 12
    focal = (64 / 160, 48 / 90)
    recorded = torch.isclose(
        first.intrinsics[:, 0, 0, 0], torch.tensor(max(focal) * 80 / np.tan(np.deg2rad(35)))
    )
    assert 2 <= int(recorded.sum()) <= 10


def test_a_mixed_batch_can_be_learnt_from(root: Path) -> None:
    mixed = config(root, 0.5, partial=0.5)
    network = Fast3R(mixed.model)
    loss, errors = Objective(network)(training_batch(mixed, 0), [0, 1, 2])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(errors).all()


def test_unusable_training_data_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"share is 1\.5; it must be between"):
        config(root, 1.5)
    (tmp_path / "scene").mkdir()
    for folder in ("color", "pose", "intrinsic"):
        (tmp_path / "scene" / folder).symlink_to(root / "scene" / folder)
    with pytest.raises(UserError, match="no depth"):
        training_batch(config(tmp_path, 1.0), 0)
