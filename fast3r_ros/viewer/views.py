"""Where browsers look from: the whole map, from above, through a camera, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import viser

from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Float32, Float64, UInt8
from fast3r_ros.viewer.scene import whole_picture_fov

_FOV = np.deg2rad(60.0)  # vertical
_MOST_BACK = 50  # views that a browser can go back


@dataclass(frozen=True)
class _View:
    """position, look_at, up: (3,) in the map frame.  fov: vertical, radians."""

    position: Float64
    look_at: Float64
    up: Float64
    fov: float = _FOV


class Views:
    """Moves the browsers' views; each browser has its own, and its own way back."""

    def __init__(self, server: viser.ViserServer) -> None:
        self.bounds = np.full(3, -1.0), np.full(3, 1.0)
        self._before: dict[int, list[_View]] = {}
        self._pictures: dict[int, list[Any]] = {}  # in the panels of browsers that look through a camera
        server.on_client_connect(lambda client: self._move(client, self._start(client)))
        server.on_client_disconnect(self._forget)

    def fit(self, points: Float32) -> tuple[Float64, Float64]:
        """Corners that hold nearly all points (N, 3), which views go by from now on."""
        if len(points):
            some = points[:: max(1, len(points) // 50_000)]
            low, high = np.percentile(some, (2, 98), axis=0)
            self.bounds = low, np.maximum(high, low + 1e-3)
        return self.bounds

    def whole_map(self, client: viser.ClientHandle | None) -> None:
        """The whole map, obliquely from above."""
        if client is not None:
            self._go(client, self._start(client))

    def from_above(self, client: viser.ClientHandle | None) -> None:
        """The floor plan, x to the right."""
        if client is None:
            return
        centre, _ = self._centre_and_reach()
        above = centre + self._distance(client) * np.array([0.0, -1e-3, 1.0])
        self._go(client, _View(above, centre, np.array([0.0, 1.0, 0.0])))

    def through(self, client: viser.ClientHandle | None, record: CameraRecord, image: UInt8 | None) -> None:
        """As a camera saw the map; its picture comes into the browser's panel."""
        if client is None:
            return
        pose, (_, reach) = record.map_from_camera, self._centre_and_reach()
        place, (_, down, ahead) = pose[:3, 3], pose[:3, :3].T
        fov = whole_picture_fov(record, client.camera.aspect)
        self._go(client, _View(place, place + ahead * reach / 10, -down, fov))
        if image is not None:
            picture = client.gui.add_image(image, label=f"camera {record.name}", format="jpeg")
            self._pictures[client.client_id] = [picture]

    def back(self, client: viser.ClientHandle | None) -> None:
        """To where the browser looked from before it was moved."""
        if client is not None and self._before.get(client.client_id):
            self._close_picture(client)
            self._move(client, self._before[client.client_id].pop())

    def _go(self, client: viser.ClientHandle | None, view: _View) -> None:
        if client is None:
            return
        camera = client.camera
        now = _View(camera.position, camera.look_at, camera.up_direction, camera.fov)
        self._before.setdefault(client.client_id, []).append(now)
        del self._before[client.client_id][:-_MOST_BACK]
        self._close_picture(client)
        self._move(client, view)

    def _start(self, client: viser.ClientHandle) -> _View:
        centre, _ = self._centre_and_reach()
        aside = self._distance(client) * np.array([-0.55, -0.55, 0.63])
        return _View(centre + aside, centre, np.array([0.0, 0.0, 1.0]))

    def _distance(self, client: viser.ClientHandle) -> float:
        """From where a browser's window shows all of the map, with a little margin."""
        _, reach = self._centre_and_reach()
        narrow = np.tan(_FOV / 2) * min(1.0, client.camera.aspect)
        return float(0.6 * reach / np.sin(np.arctan(narrow)))

    def _centre_and_reach(self) -> tuple[Float64, float]:
        low, high = self.bounds
        return (low + high) / 2, float(np.linalg.norm(high - low))

    def _close_picture(self, client: viser.ClientHandle) -> None:
        for picture in self._pictures.pop(client.client_id, []):
            picture.remove()

    def _forget(self, client: viser.ClientHandle) -> None:
        self._before.pop(client.client_id, None)
        self._pictures.pop(client.client_id, None)

    def _move(self, client: viser.ClientHandle, view: _View) -> None:
        _, reach = self._centre_and_reach()
        with client.atomic():
            client.camera.near, client.camera.far = reach / 5000, reach * 50
            client.camera.fov = view.fov
            client.camera.up_direction = tuple(view.up)
            client.camera.position = tuple(view.position)
            client.camera.look_at = tuple(view.look_at)
