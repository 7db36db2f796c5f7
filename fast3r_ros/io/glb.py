"""The map as glTF (GLB), for browsers, Blender and 3D viewers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fast3r_ros.errors import UserError, optional
from fast3r_ros.files import whole_file
from fast3r_ros.geometry.rigid import transform_points
from fast3r_ros.io.cameras import CameraRecord, frustum_segments, frustum_size
from fast3r_ros.mapping.data import Cloud

with optional("trimesh", "a .glb"):
    import trimesh

# glTF is y up; the map is z up.
GLTF_FROM_MAP = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
_FRUSTUM_COLOR = (228, 87, 46, 255)


def write_glb(path: str | Path, cloud: Cloud, records: Sequence[CameraRecord]) -> None:
    """Write the cloud and a frustum of lines per view.

    Vertices are in the map frame; the nodes carry the rotation to glTF's axes.  The depth of a frustum is a
    fiftieth of the map's extent.  Raises UserError when the file cannot be written.
    """
    scene = trimesh.Scene()
    if len(cloud.points):
        points = trimesh.PointCloud(cloud.points, colors=cloud.colors)
        scene.add_geometry(points, node_name="map", geom_name="map", transform=GLTF_FROM_MAP)
    if records:
        size = frustum_size(cloud, records)
        segments = [
            frustum_segments(view.map_from_camera, view.intrinsics, view.width, view.height, size=size)
            for view in records
        ]
        lines = trimesh.load_path(np.concatenate(segments))
        lines.colors = [_FRUSTUM_COLOR] * len(lines.entities)
        scene.add_geometry(lines, node_name="cameras", geom_name="cameras", transform=GLTF_FROM_MAP)
    with whole_file(path) as temporary:
        temporary.write_bytes(scene.export(file_type="glb"))


def read_glb(path: str | Path) -> Cloud:
    """The points of a GLB in the map frame, z up; a GLB stores no confidence, so it is 1.

    Raises UserError when the file is not a GLB or has no point cloud.
    """
    try:
        scene = trimesh.load_scene(path, file_type="glb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # the library raises many types on garbage
        raise UserError(f"{path} is not a glTF file that can be read ({error})") from error
    points, colors = [], []
    for node in scene.graph.nodes_geometry:
        gltf_from_node, name = scene.graph[node]
        geometry = scene.geometry[name]
        if isinstance(geometry, trimesh.PointCloud):  # and not the frusta's lines
            map_from_node = GLTF_FROM_MAP.T @ gltf_from_node
            points.append(transform_points(map_from_node, np.asarray(geometry.vertices)))
            colors.append(np.asarray(geometry.colors)[:, :3])
    if not points:
        raise UserError(f"{path} has no point cloud")
    xyz = np.concatenate(points).astype(np.float32)
    return Cloud(xyz, np.concatenate(colors).astype(np.uint8), np.ones(len(xyz), np.float32))
