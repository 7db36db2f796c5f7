"""The network as mapping sees it: frames to tokens, windows of tokens to pointmaps as numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.camera_pose import poses_by_pnp
from fast3r_ros.geometry.focal import first_view_focal
from fast3r_ros.geometry.rigid import inverse, transform_points
from fast3r_ros.mapping.data import EncodedView, Frame, Reconstruction
from fast3r_ros.model import Fast3R, Pointmap
from fast3r_ros.model.preprocess import normalize, prepare_image


class Fast3RNetwork:
    """A `WindowNetwork` over `Fast3R`: a frame is encoded once, its tokens are fused in every window it is
    in.
    """

    def __init__(self, model: Fast3R, image_size: int | None = None) -> None:
        """image_size: pixels of the longer side at the network; None is what the model was made for."""
        self._model = model
        self._image_size = image_size or model.config.image_size
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def encode(self, frame: Frame) -> EncodedView:
        """Resize, crop and encode one frame.  Raises UserError for an image that cannot be used."""
        prepared = prepare_image(frame.image, self._image_size)
        tokens = self._model.encode(normalize(prepared.pixels, self._device)[None])
        pooled = tokens.tokens[0].float().mean(dim=0)
        descriptor = torch.nn.functional.normalize(pooled, dim=0).cpu().numpy()
        intrinsics = None if frame.intrinsics is None else prepared.pixel_transform @ frame.intrinsics
        return EncodedView(prepared.pixels, prepared.pixel_transform, intrinsics, descriptor, tokens)

    @torch.inference_mode()
    def reconstruct(self, views: Sequence[EncodedView]) -> Reconstruction:
        """One forward pass.  Raises UserError when the views differ in size."""
        sizes = {view.image.shape[:2] for view in views}
        if len(sizes) != 1:
            raise UserError(
                f"the views of a window have different sizes {sorted(sizes)}; crop the images alike"
            )
        features = self._model.fuse([view.tokens for view in views])
        points_global, confidence_global = _arrays(self._model.global_head(features))
        if self._model.downstream_head_local is None:
            points_local = _local_from_global(points_global, confidence_global)
            return Reconstruction(points_global, confidence_global, points_local, confidence_global)
        points_local, confidence_local = _arrays(self._model.local_head(features))
        return Reconstruction(points_global, confidence_global, points_local, confidence_local)


def _arrays(maps: Sequence[Pointmap]) -> tuple[np.ndarray, np.ndarray]:
    """Pointmaps of V views -> points (V, h, w, 3) and confidence (V, h, w), float32."""
    points = torch.cat([view.points for view in maps]).float().cpu().numpy()
    return points, torch.cat([view.confidence for view in maps]).float().cpu().numpy()


def _local_from_global(points_global: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """For a network without a local head: the global points seen from each camera, whose pose PnP gives."""
    poses = poses_by_pnp(points_global, confidence, first_view_focal(points_global, confidence))
    local = [
        transform_points(inverse(pose), points) if ok else np.full_like(points, np.nan)
        for pose, points, ok in zip(poses.window_from_camera, points_global, poses.ok, strict=True)
    ]
    return np.stack(local)
