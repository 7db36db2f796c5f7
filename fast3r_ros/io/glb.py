"""The map as glTF (GLB): what browsers, Blender and 3D viewers open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh

from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.io.files import whole_file
from fast3r_ros.io.frusta import frustum_segments
from fast3r_ros.mapping.data import Cloud

# glTF is y up; the map is z up.
GLTF_FROM_MAP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
_FRUSTUM_COLOR = (228, 87, 46, 255)


def write_glb(path: str | Path, cloud: Cloud, records: Sequence[CameraRecord]) -> None:
    """Write the cloud and a frustum of lines per view.

    Vertices are in the map frame; the nodes carry the turn to glTF's axes.  The frusta's depth is a fiftieth
    of the map's extent.  Raises UserError when the file cannot be written.
    """
    scene = trimesh.Scene()
    if len(cloud.points):
        points = trimesh.PointCloud(cloud.points, colors=cloud.colors)
        scene.add_geometry(points, node_name="map", geom_name="map", transform=GLTF_FROM_MAP)
    if records:
        size = _frustum_size(cloud, records)
        segments = [
            frustum_segments(view.map_from_camera, view.intrinsics, view.width, view.height, size=size)
            for view in records
        ]
        lines = trimesh.load_path(np.concatenate(segments))
        lines.colors = [_FRUSTUM_COLOR] * len(lines.entities)
        scene.add_geometry(lines, node_name="cameras", geom_name="cameras", transform=GLTF_FROM_MAP)
    with whole_file(path) as temporary:
        temporary.write_bytes(scene.export(file_type="glb"))


def _frustum_size(cloud: Cloud, records: Sequence[CameraRecord]) -> float:
    """Depth of a drawn frustum in map units."""
    shown = cloud.points if len(cloud.points) else np.array([view.map_from_camera[:3, 3] for view in records])
    low, high = np.percentile(shown, (2, 98), axis=0)
    return max(float(np.linalg.norm(high - low)) / 50, 1e-3)
