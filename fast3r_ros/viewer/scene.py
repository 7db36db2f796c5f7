"""The scene around the points in the browser: cameras with their pictures, the trajectory, the rulers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import viser
from scipy.spatial.transform import Rotation

from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Float32, Float64, UInt8

MAX_CAMERAS = 150
_COLOUR = (228, 87, 46)
_INK = (60, 64, 72)


@dataclass
class _Camera:
    """One camera's nodes: its frustum, its picture, the trajectory from the previous camera."""

    record: CameraRecord
    frustum: viser.CameraFrustumHandle
    picture: viser.ImageHandle | None
    lines: Float32
    segment: viser.LineSegmentsHandle | None


class Cameras:
    """The cameras of a map; updates send only changes.

    on_click(name, client): called for a click on a frustum or a picture.
    """

    def __init__(self, server: viser.ViserServer, on_click: Callable[[str, Any], None]) -> None:
        self._server, self._on_click = server, on_click
        self._shown: dict[str, _Camera] = {}
        self._size = 0.0
        self._with_pictures = True
        self._cameras = server.scene.add_frame("/cameras", show_axes=False)
        self._trajectory = server.scene.add_frame("/trajectory", show_axes=False)

    def update(self, records: Sequence[CameraRecord], images: Mapping[str, UInt8], size: float) -> None:
        """Show these cameras, in time order; at most `MAX_CAMERAS`, evenly spread, have a frustum.

        size: depth of a frustum in map units.
        """
        step = max(1, -(-len(records) // MAX_CAMERAS))
        chosen = {record.name: index for index, record in enumerate(records) if index % step == 0}
        for name in [name for name in self._shown if name not in chosen]:
            self._remove(self._shown.pop(name))
        places = np.array([record.map_from_camera[:3, 3] for record in records], np.float32).reshape(-1, 3)
        for name, index in chosen.items():
            leg = places[max(index - step, 0) : index + 1]
            self._show(records[index], images.get(name), size, np.stack([leg[:-1], leg[1:]], 1))
        self._size = size

    def show_until(self, stamp_ns: float) -> None:
        """Hide the cameras after a stamp, and the trajectory to them."""
        for camera in self._shown.values():
            there = camera.record.stamp_ns <= stamp_ns
            camera.frustum.visible = there
            if camera.segment is not None:
                camera.segment.visible = there

    def show_parts(self, cameras: bool, pictures: bool, trajectory: bool) -> None:
        """Show or hide all cameras, their pictures, and the trajectory."""
        self._cameras.visible, self._trajectory.visible = cameras, trajectory
        self._with_pictures = pictures
        for camera in self._shown.values():
            if camera.picture is not None:
                camera.picture.visible = pictures

    def is_clickable(self, node: str) -> bool:
        """Whether the node of this name accepts clicks."""
        kind, _, rest = node.lstrip("/").partition("/")
        return kind == "cameras" and rest.removesuffix("/picture") in self._shown

    def record(self, name: str) -> CameraRecord | None:
        """The camera of that name, if it is shown."""
        camera = self._shown.get(name)
        return None if camera is None else camera.record

    def _show(self, record: CameraRecord, image: UInt8 | None, size: float, lines: Float32) -> None:
        name, pose = record.name, record.map_from_camera
        camera = self._shown.get(name)
        if camera is None or not _same_lens(camera.record, record):
            if camera is not None:
                self._remove(camera)
            camera = self._shown[name] = _Camera(record, self._frustum(record, size), None, lines[:0], None)
        elif not np.array_equal(camera.record.map_from_camera, pose):
            camera.frustum.wxyz, camera.frustum.position = quaternion(pose), tuple(pose[:3, 3])
        camera.record = record
        if camera.picture is None and image is not None:
            camera.picture = self._picture(record, image, size)
        if size != self._size:
            camera.frustum.scale = size * _depth_factor(record)
            if camera.picture is not None:
                camera.picture.scale, camera.picture.position = size, (0.0, 0.0, size)
        if not np.array_equal(camera.lines, lines):
            camera.lines = lines
            camera.segment = self._server.scene.add_line_segments(
                f"/trajectory/{name}", lines, _COLOUR, thickness=2.5, thickness_units="screen"
            )

    def _frustum(self, record: CameraRecord, size: float) -> viser.CameraFrustumHandle:
        frustum = self._server.scene.add_camera_frustum(
            f"/cameras/{record.name}",
            fov=_vertical_fov(record),
            aspect=record.width / record.height,
            scale=size * _depth_factor(record),
            thickness=1.5,
            thickness_units="screen",
            color=_COLOUR,
            cast_shadow=False,
            wxyz=quaternion(record.map_from_camera),
            position=tuple(record.map_from_camera[:3, 3]),
        )
        frustum.on_click(lambda event: self._on_click(record.name, event.client))
        return frustum

    def _picture(self, record: CameraRecord, image: UInt8, size: float) -> viser.ImageHandle:
        """The picture at the far end of the frustum."""
        picture = add_picture(self._server.scene, f"/cameras/{record.name}/picture", record, image, size)
        picture.position, picture.visible = (0.0, 0.0, size), self._with_pictures
        picture.on_click(lambda event: self._on_click(record.name, event.client))
        return picture

    def _remove(self, camera: _Camera) -> None:
        camera.frustum.remove()  # and the picture, its child
        if camera.segment is not None:
            camera.segment.remove()


class Rulers:
    """The axes of the map frame, a grid at its floor, and a bar of known length."""

    def __init__(self, server: viser.ViserServer) -> None:
        self._server = server
        self._drawn: tuple[Any, ...] = ()
        self._grid: Any = None
        self._bar: list[Any] = []
        self._visible = (True, True)

    def update(self, low: Float64, high: Float64, unit: str) -> None:
        """Draw them around a map with these corners.  unit: of length, for the bar's label."""
        length = scale_length(float((high - low)[:2].max()))
        first, last = np.floor(low / length) - 1, np.ceil(high / length) + 1  # with a margin of one cell
        drawn = (length, *first, *last[:2], unit)
        if drawn == self._drawn:
            return
        self._drawn = drawn
        corner, sides = first * length, (last - first)[:2] * length
        scene, axes = self._server.scene, self._server.scene.world_axes
        axes.axes_length, axes.axes_radius, axes.origin_radius = length / 2, length / 60, length / 40
        self._grid = scene.add_grid(
            "/grid",
            *(float(side) for side in sides),
            cell_size=length,
            section_size=length * 5,
            cell_color=(205, 208, 214),
            section_color=(170, 174, 182),
            position=(*(corner[:2] + sides / 2), low[2] - length / 100),  # under the points
            fade_distance=1e6,
        )
        middle = corner[0] + sides[0] / 2  # of the edge that is nearest in the initial view
        begin = np.array([middle - length / 2, corner[1] + length / 2, low[2]])
        end, tick = begin + np.array([length, 0, 0]), np.array([0, length / 12, 0])
        lines = np.array([[begin, end], [begin - tick, begin + tick], [end - tick, end + tick]], np.float32)
        text = f"{length:g} {unit.removesuffix('s') if length == 1 else unit}"
        # next to the bar, also when seen from above
        above = (begin + end) / 2 + np.array([0, length / 5, length / 5])
        self._bar = [
            scene.add_line_segments("/scale", lines, _INK, thickness=4, thickness_units="screen"),
            scene.add_label("/scale/label", text, position=tuple(above), anchor="bottom-center"),
        ]
        self.show_parts(*self._visible)

    def show_parts(self, grid: bool, axes: bool) -> None:
        """Show or hide the grid, and the axes with the bar."""
        self._visible = (grid, axes)
        if self._grid is not None:
            self._grid.visible = grid
            self._server.scene.world_axes.visible = axes
            for part in self._bar:
                part.visible = axes


def scale_length(extent: float) -> float:
    """The longest of 1, 2, 5, 10, … (and 0.5, 0.2, …) that is at most a quarter of an extent."""
    most = max(extent, 1e-6) / 4
    power = 10.0 ** np.floor(np.log10(most))
    return float(next(step * power for step in (5, 2, 1) if step * power <= most * (1 + 1e-9)))


def frustum_size(records: Sequence[CameraRecord], cell: float) -> float:
    """Depth of the frusta: smaller where cameras are close together, so that they stay distinguishable.

    cell: about a tenth of the map's extent.  The size changes in powers of 2, so rarely while a map grows.
    """
    if len(records) < 2:
        return cell / 2
    places = np.array([record.map_from_camera[:3, 3] for record in records])
    path = float(np.linalg.norm(np.diff(places, axis=0), axis=1).sum())
    spacing = path / min(len(records) - 1, MAX_CAMERAS)
    return float(2.0 ** np.floor(np.log2(np.clip(1.5 * spacing, cell / 8, cell / 2))))


def add_picture(
    scene: viser.SceneApi, name: str, record: CameraRecord, image: UInt8, depth: float
) -> viser.ImageHandle:
    """A camera's picture, as large as the field of view at that depth."""
    width, height = record.width / record.intrinsics[0, 0], record.height / record.intrinsics[1, 1]
    shadows: dict[str, Any] = {"cast_shadow": False, "receive_shadow": False}
    return scene.add_image(name, image, width, height, format="jpeg", scale=depth, **shadows)


def whole_picture_fov(record: CameraRecord, aspect: float) -> float:
    """Vertical angle in radians at which a window of that aspect shows a camera's picture with a margin."""
    across = record.width / 2 / record.intrinsics[0, 0]
    return float(2 * np.arctan(1.15 * max(np.tan(_vertical_fov(record) / 2), across / aspect)))


def _vertical_fov(record: CameraRecord) -> float:
    return float(2 * np.arctan(record.height / 2 / record.intrinsics[1, 1]))


def _depth_factor(record: CameraRecord) -> float:
    """viser's scale of a frustum of depth 1: frusta of the same scale have equal size."""
    up = np.tan(_vertical_fov(record) / 2)
    return float(np.cbrt(up * up * record.width / record.height / 3))


def _same_lens(one: CameraRecord, other: CameraRecord) -> bool:
    same_size = (one.width, one.height) == (other.width, other.height)
    return same_size and bool(np.allclose(one.intrinsics, other.intrinsics, rtol=0.01))


def quaternion(pose: Float64) -> tuple[float, float, float, float]:
    """(w, x, y, z) of a pose (4, 4)."""
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    return (w, x, y, z)
