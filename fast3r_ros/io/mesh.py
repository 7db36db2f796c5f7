"""A mesh of the map: the keyframes' depth pictures, fused to a signed distance field."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fast3r_ros.errors import UserError, optional
from fast3r_ros.files import whole_file
from fast3r_ros.geometry.rigid import inverse
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.io.view_images import DEPTH_STEPS, read_image

VOXEL_PIXELS = 1.5  # edge of a voxel, in pixels of a surface at the median depth
TRUNCATION_VOXELS = 4.0
TRUNCATION_DEPTH = 0.03  # minimum, of the median depth: the depth error of one view
LEAST_WEIGHT = 1.0  # minimum number of views that see a surface
BLOCK, FIRST_BLOCKS = 8, 4096  # voxels along a block's edge; blocks before the grid grows
FARTHEST = 3.0  # median depths; farther depths are too uncertain


def require_open3d() -> None:
    """Raises UserError when Open3D cannot be used: before a long run, not after it."""
    if importlib.util.find_spec("open3d") is None:
        raise UserError("--mesh needs Open3D, an optional package: pip install open3d")
    with optional("open3d", "--mesh"):
        import open3d  # noqa: F401


def write_mesh(directory: Path, records: Sequence[CameraRecord]) -> None:
    """Write `map_mesh.ply` and `map_mesh.glb` from the views' `images` and `depth` below `directory`.

    In the map frame and its unit; the .glb is rotated to glTF's axes, like `map.glb`.  Surfaces that no view
    has seen stay open; without any surface nothing is written.  Raises UserError when Open3D is missing or a
    file cannot be read or written.
    """
    mesh = fuse_depth(directory, records)
    if mesh is None:
        return
    from fast3r_ros.io.glb import GLTF_FROM_MAP  # needs an optional package

    with whole_file(directory / "map_mesh.ply") as temporary:
        temporary.write_bytes(mesh.export(file_type="ply"))
    with whole_file(directory / "map_mesh.glb") as temporary:
        temporary.write_bytes(mesh.apply_transform(GLTF_FROM_MAP).export(file_type="glb"))


def fuse_depth(directory: Path, records: Sequence[CameraRecord]) -> Any | None:
    """The `trimesh.Trimesh` with colours, in the map frame; None without any surface.

    Curless and Levoy's weighted signed distances, implemented by Open3D.  Raises UserError.
    """
    require_open3d()
    import open3d

    with optional("trimesh", "--mesh"):
        import trimesh

    focal, typical = _focal_and_depth(directory, records)
    if not typical:
        return None
    voxel = VOXEL_PIXELS * typical / focal
    scaling = {"depth_scale": float(DEPTH_STEPS), "depth_max": FARTHEST * typical}
    truncation = max(TRUNCATION_VOXELS, TRUNCATION_DEPTH * typical / voxel)  # in voxels
    real = open3d.core.float32
    # not ScalableTSDFVolume, which is empty in some builds of Open3D 0.20
    grid = open3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight", "color"), (real, real, real), ((1), (1), (3)), voxel, BLOCK, FIRST_BLOCKS
    )
    for record in records:
        matrix = record.intrinsics.copy()
        matrix[:2, 2] -= 0.5  # its pixel centres are integers
        lens, pose = open3d.core.Tensor(matrix), open3d.core.Tensor(inverse(record.map_from_camera))
        depth = open3d.t.geometry.Image(_read_depth(directory, record))
        colors = np.ascontiguousarray(read_image(directory / "images" / f"{record.name}.png"))
        seen = {"trunc_voxel_multiplier": truncation, **scaling}
        blocks = grid.compute_unique_block_coordinates(depth, lens, pose, **seen)
        if len(blocks):
            grid.integrate(blocks, depth, open3d.t.geometry.Image(colors), lens, pose, **seen)
    if not grid.hashmap().size():
        return None
    surface = grid.extract_triangle_mesh(weight_threshold=LEAST_WEIGHT)
    if not surface.triangle or not len(surface.triangle.indices):
        return None
    colors = np.round(surface.vertex.colors.numpy() * 255).clip(0, 255).astype(np.uint8)
    return trimesh.Trimesh(
        surface.vertex.positions.numpy(), surface.triangle.indices.numpy(), vertex_colors=colors
    )


def _focal_and_depth(directory: Path, records: Sequence[CameraRecord]) -> tuple[float, float]:
    """Median focal length in pixels and median depth in the map's unit, of views spread over the run."""
    some = records[:: max(1, len(records) // 16)]
    medians = [
        np.median(depth[depth > 0]) for depth in (_read_depth(directory, r) for r in some) if depth.any()
    ]
    if not medians:
        return 1.0, 0.0
    return float(np.median([r.intrinsics[0, 0] for r in some])), float(np.median(medians)) / DEPTH_STEPS


def _read_depth(directory: Path, record: CameraRecord) -> np.ndarray:
    path = directory / "depth" / f"{record.name}.png"
    depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if depth is None:
        raise UserError(f"cannot read {path} again, for the mesh")
    return depth
