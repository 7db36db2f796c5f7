"""Other programs on the same frames: `fast3r evaluate --peer colmap` runs pycolmap's incremental mapping.

Peers get the network's images and, like the mapper, the calibration.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fast3r_ros.datasets.posed import PosedFrame
from fast3r_ros.errors import optional
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.mapping.data import Float64

PEERS = ("colmap",)
EXHAUSTIVE_UP_TO = 40  # images; longer sequences are matched to their neighbours only
NEIGHBOURS = 10
SEED = 1  # of COLMAP's random choices, for reproducible rows


def peer_name(peer: str) -> str:
    """The peer's name in tables, with its version.  Raises UserError when it is not installed."""
    return f"peer: COLMAP (pycolmap {_package(peer).__version__})"


def peer_poses(peer: str, frames: Sequence[PosedFrame]) -> Float64:
    """world_from_camera (N, 4, 4) of the frames in the peer's own frame and scale, NaN where it has none.

    Of several models the one with the most images is used.  Raises UserError when the peer is not installed.
    """
    pycolmap = _package(peer)
    poses = np.full((len(frames), 4, 4), np.nan)
    with tempfile.TemporaryDirectory() as name:
        folder, images = Path(name), Path(name) / "images"
        images.mkdir()
        for number, frame in enumerate(frames):
            picture = frame.read_image()
            cv2.imwrite(str(images / f"{number:06d}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        matrix = frames[0].intrinsics  # COLMAP's pixel centres are at integer + 0.5, like ours
        parameters = f"{matrix[0, 0]},{matrix[1, 1]},{matrix[0, 2]},{matrix[1, 2]}"
        reader = {"camera_model": "PINHOLE", "camera_params": parameters}
        database = folder / "database.db"
        options = {"camera_mode": pycolmap.CameraMode.SINGLE, "reader_options": reader}
        extraction, matching = pycolmap.FeatureExtractionOptions(), pycolmap.FeatureMatchingOptions()
        extraction.num_threads = matching.num_threads = 1  # for a reproducible order of results
        pycolmap.extract_features(str(database), str(images), extraction_options=extraction, **options)
        verification = pycolmap.TwoViewGeometryOptions()
        verification.ransac.random_seed = SEED
        if len(frames) <= EXHAUSTIVE_UP_TO:
            pycolmap.match_exhaustive(
                str(database), matching_options=matching, verification_options=verification
            )
        else:
            pairing = pycolmap.SequentialPairingOptions()
            pairing.overlap = NEIGHBOURS
            pycolmap.match_sequential(
                str(database), matching, pairing_options=pairing, verification_options=verification
            )
        mapping = pycolmap.IncrementalPipelineOptions()
        mapping.random_seed = mapping.mapper.random_seed = mapping.triangulation.random_seed = SEED
        mapping.num_threads = mapping.mapper.num_threads = 1
        mapping.ba_refine_focal_length = mapping.mapper.abs_pose_refine_focal_length = False  # it is given
        models = pycolmap.incremental_mapping(
            str(database), str(images), str(folder / "sparse"), options=mapping
        )
        if models:
            best = max(models.values(), key=lambda model: model.num_reg_images())
            for image in best.images.values():
                if image.has_pose:
                    camera_from_world = np.eye(4)
                    camera_from_world[:3] = image.cam_from_world().matrix()
                    poses[int(Path(image.name).stem)] = inverse(camera_from_world)
    return poses


def _package(peer: str) -> Any:
    with optional("pycolmap", f"--peer {peer}"):
        import pycolmap
    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    return pycolmap
