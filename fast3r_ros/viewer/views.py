"""The browsers' views: the whole map, from above, through a camera, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import viser

from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Float32, Float64, UInt8
from fast3r_ros.viewer.scene import add_picture, quaternion, whole_picture_fov

_FOV = np.deg2rad(60.0)  # vertical
_MOST_BACK = 50  # length of a browser's history


@dataclass(frozen=True)
class _View:
    """position, look_at, up: (3,) in the map frame.  fov: vertical, radians."""

    position: Float64
    look_at: Float64
    up: Float64
    fov: float = _FOV


@dataclass
class _LookedThrough:
    """The camera a browser looks through.

    place: (3,) its position.  picture: in the scene.  others: nodes to remove when the browser moves away.
    arrived: whether the browser has arrived; its earlier messages still describe the old view.
    """

    place: Float64
    picture: viser.ImageHandle | None
    others: list[Any]
    arrived: bool = False


class BrowserViews:
    """Moves the browsers' views; each browser has its own view and history."""

    def __init__(self, server: viser.ViserServer) -> None:
        self.bounds = np.full(3, -1.0), np.full(3, 1.0)
        self._before: dict[int, list[_View]] = {}
        self._through: dict[int, _LookedThrough] = {}
        self._with_pictures = True
        server.on_client_connect(self._welcome)
        server.on_client_disconnect(self._forget)

    def fit(self, points: Float32) -> tuple[Float64, Float64]:
        """Corners around nearly all points (N, 3); views use them from now on."""
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
        """The map as seen by a camera, with the other cameras hidden, until the browser moves away.

        image: the camera's picture, in front of the map and in the browser's panel.
        """
        if client is None:
            return
        pose, (_, reach) = record.map_from_camera, self._centre_and_reach()
        place, (_, down, ahead) = pose[:3, 3], pose[:3, :3].T
        fov = whole_picture_fov(record, client.camera.aspect)
        self._go(client, _View(place, place + ahead * reach / 10, -down, fov))
        # a node for one browser replaces the shared node of that name
        names = ("/cameras", "/trajectory")
        others: list[Any] = [client.scene.add_frame(name, show_axes=False, visible=False) for name in names]
        picture = None
        if image is not None:
            others.append(client.gui.add_image(image, label=f"camera {record.name}", format="jpeg"))
            picture = add_picture(client.scene, "/looked_through", record, image, reach / 20)
            picture.wxyz, picture.position = quaternion(pose), tuple(place + ahead * reach / 20)
            picture.visible = self._with_pictures
        self._through[client.client_id] = _LookedThrough(place, picture, others)

    def show_pictures(self, shown: bool) -> None:
        """Show or hide the pictures of the cameras that are looked through."""
        self._with_pictures = shown
        for through in list(self._through.values()):
            if through.picture is not None:
                through.picture.visible = shown

    def back(self, client: viser.ClientHandle | None) -> None:
        """Return to the browser's previous view."""
        if client is not None and self._before.get(client.client_id):
            self._leave(client.client_id)
            self._move(client, self._before[client.client_id].pop())

    def _go(self, client: viser.ClientHandle | None, view: _View) -> None:
        if client is None:
            return
        camera = client.camera
        now = _View(camera.position, camera.look_at, camera.up_direction, camera.fov)
        self._before.setdefault(client.client_id, []).append(now)
        del self._before[client.client_id][:-_MOST_BACK]
        self._leave(client.client_id)
        self._move(client, view)

    def _start(self, client: viser.ClientHandle) -> _View:
        centre, _ = self._centre_and_reach()
        aside = self._distance(client) * np.array([-0.55, -0.55, 0.63])
        return _View(centre + aside, centre, np.array([0.0, 0.0, 1.0]))

    def _distance(self, client: viser.ClientHandle) -> float:
        """The distance at which a browser's window shows the whole map, with a small margin."""
        _, reach = self._centre_and_reach()
        narrow = np.tan(_FOV / 2) * min(1.0, client.camera.aspect)
        return float(0.6 * reach / np.sin(np.arctan(narrow)))

    def _centre_and_reach(self) -> tuple[Float64, float]:
        low, high = self.bounds
        return (low + high) / 2, float(np.linalg.norm(high - low))

    def _welcome(self, client: viser.ClientHandle) -> None:
        self._move(client, self._start(client))
        client.camera.on_update(lambda _: self._moved(client))

    def _moved(self, client: viser.ClientHandle) -> None:
        """A browser was moved, by its user or by us: it may have left its camera."""
        through = self._through.get(client.client_id)
        if through is None:
            return
        _, reach = self._centre_and_reach()
        there = bool(np.linalg.norm(client.camera.position - through.place) < reach / 100)
        if through.arrived and not there:
            self._leave(client.client_id)
        through.arrived |= there

    def _leave(self, client_id: int) -> None:
        through = self._through.pop(client_id, None)
        if through is not None:
            for part in [*through.others, *filter(None, [through.picture])]:
                part.remove()

    def _forget(self, client: viser.ClientHandle) -> None:
        self._before.pop(client.client_id, None)
        self._through.pop(client.client_id, None)

    def _move(self, client: viser.ClientHandle, view: _View) -> None:
        _, reach = self._centre_and_reach()
        with client.atomic():
            client.camera.near, client.camera.far = reach / 5000, reach * 50
            client.camera.fov = view.fov
            client.camera.up_direction = tuple(view.up)
            client.camera.position = tuple(view.position)
            client.camera.look_at = tuple(view.look_at)
