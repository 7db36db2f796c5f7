"""The network as mapping sees it: frames to tokens, windows of tokens to pointmaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

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
        """One forward pass; the pointmaps stay on the model's device."""
        features = self._model.fuse([view.tokens for view in views])
        points_global, confidence_global = _per_view(self._model.global_head(features))
        if self._model.downstream_head_local is None:
            points_local = _local_from_global(points_global, confidence_global)
            return Reconstruction(points_global, confidence_global, points_local, confidence_global)
        points_local, confidence_local = _per_view(self._model.local_head(features))
        return Reconstruction(points_global, confidence_global, points_local, confidence_local)


def _per_view(maps: Sequence[Pointmap]) -> tuple[list[Tensor], list[Tensor]]:
    """Pointmaps of V views -> points (h, w, 3) and confidence (h, w) of each, float32."""
    return [view.points[0].float() for view in maps], [view.confidence[0].float() for view in maps]


def _local_from_global(points_global: Sequence[Tensor], confidence: Sequence[Tensor]) -> list[Tensor]:
    """For a network without a local head: the global points seen from each camera, whose pose PnP gives."""
    points = [view.cpu().numpy() for view in points_global]
    trust = [view.cpu().numpy() for view in confidence]
    poses = poses_by_pnp(points, trust, first_view_focal(points, trust))
    local = [
        transform_points(inverse(pose), view) if ok else np.full_like(view, np.nan)
        for pose, view, ok in zip(poses.window_from_camera, points, poses.ok, strict=True)
    ]
    return [torch.from_numpy(view).to(points_global[0].device) for view in local]
