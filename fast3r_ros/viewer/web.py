"""A map in the browser: the cloud, the cameras with their images, and sliders; through viser.

Bound to 127.0.0.1 by default; `viewer/guard.py` decides who is served and what a browser may send.
"""

from __future__ import annotations

import math
import re
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from fast3r_ros.errors import UserError, optional
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Cloud, Float64, UInt8
from fast3r_ros.viewer.visibility import first_seen

with optional("viser", "the web viewer"):
    import viser
    from viser import ViserServer

    from fast3r_ros.viewer.guard import Guard, guarded

MAX_POINTS = 1_000_000  # that a browser gets; a larger cloud is thinned evenly
MAX_CAMERAS = 150
_WAY = (228, 87, 46)


class WebViewer:
    """Serves one map that may grow while it is looked at.  Thread-safe; browsers may come and go.

    host, port: where it listens; a port that is taken is replaced by the next free one, 0 by any.  token:
    what a browser's first address has to carry as `?token=…`; "": nothing.  allowed_hosts: names, besides
    this machine's own, by which browsers may reach it.  Raises UserError for an address that is not this
    machine's, a port that does not exist, or a token that does not fit into an address.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8080,
        token: str = "",
        allowed_hosts: Sequence[str] = (),
    ) -> None:
        if token and not re.fullmatch(r"[A-Za-z0-9_-]{8,128}", token):
            raise UserError("the viewer's token has to be 8 to 128 letters, digits, '-' and '_'")
        if not 0 <= port <= 65535:
            raise UserError(f"port {port} does not exist; give 0 to 65535")
        try:  # viser would wait for ever at an address that it cannot take
            socket.create_server((host, 0)).close()
        except OSError as error:
            raise UserError(f"cannot listen on {host}: {error.strerror or error}") from error
        self._lock = threading.Lock()
        self._cloud = Cloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32))
        self._ranks = np.zeros(0)  # share of points that are less confident, per point
        self._cameras: dict[str, tuple[Float64, viser.CameraFrustumHandle]] = {}
        self._records: list[CameraRecord] = []  # of all cameras, in time order
        self._seen_ns: NDArray[np.int64] | None = None  # when points were first seen, once the time is set
        self._token = token
        self._widgets: dict[str, tuple[float, float] | None] = {}  # by uuid: a slider's range, None: a button
        with guarded(Guard(tuple(allowed_hosts), token, self._widget_value)):
            self._server = ViserServer(host=host, port=port, label="fast3r", verbose=False)
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._server.scene.set_up_direction("+z")
        self._add_controls()
        self._server.on_client_connect(self._look_from_above_the_start)

    @property
    def address(self) -> str:
        """The URL to open in a browser."""
        query = f"/?token={self._token}" if self._token else ""
        return f"http://{self._server.get_host()}:{self._server.get_port()}{query}"

    @property
    def open_to_others(self) -> bool:
        """Whether other machines reach the viewer and no token is asked for."""
        host = self._server.get_host()
        return not self._token and host != "localhost" and not host.startswith("127.") and host != "::1"

    @property
    def points_shown(self) -> int:
        """Number of points that pass the sliders."""
        with self._lock:
            return int(self._shown().sum())

    def show(
        self, cloud: Cloud, cameras: Sequence[CameraRecord], images: Mapping[str, UInt8] | None = None
    ) -> None:
        """Replace what is shown.  cameras: in time order; images: name -> (h, w, 3) RGB for their frusta."""
        with self._lock:
            step = max(1, -(-len(cloud.points) // MAX_POINTS))
            self._cloud = Cloud(cloud.points[::step], cloud.colors[::step], cloud.confidence[::step])
            order = np.argsort(self._cloud.confidence, kind="stable")
            self._ranks = np.empty(len(order))
            self._ranks[order] = np.arange(len(order)) / max(len(order), 1)
            self._records, self._seen_ns = list(cameras), None
            self._show_points()
            self._show_cameras(images or {})
            self._show_way()

    def stop(self) -> None:
        """Close the port and all connections."""
        self._server.stop()

    def _add_controls(self) -> None:
        gui = self._server.gui
        self._hidden = gui.add_slider(
            "hide least confident (%)", min=0, max=95, step=1, initial_value=0, hint="share of points hidden"
        )
        self._height = gui.add_slider(
            "cut above (%)", min=5, max=100, step=1, initial_value=100, hint="share of the height shown"
        )
        self._size = gui.add_slider("point size", min=0.1, max=5.0, step=0.1, initial_value=1.0)
        self._time = gui.add_slider(
            "time (%)", min=0, max=100, step=1, initial_value=100, hint="the map at this share of the time"
        )
        self._count = gui.add_text("points shown", "0", disabled=True)
        above = gui.add_button("view from above")
        self._hidden.on_update(lambda _: self._locked(self._show_points))
        self._height.on_update(lambda _: self._locked(self._show_points))
        self._size.on_update(lambda _: self._locked(self._show_points))
        self._time.on_update(lambda _: self._show_time())
        above.on_click(lambda event: self._look_down(event.client))
        for slider in (self._hidden, self._height, self._size, self._time):
            self._widgets[slider._impl.uuid] = (slider.min, slider.max)
        self._widgets[above._impl.uuid] = None

    def _widget_value(self, uuid: str, value: Any) -> Any:
        """A value that a browser sends for a widget, within the widget's range; None if it is not one."""
        if uuid not in self._widgets:
            return None
        limits = self._widgets[uuid]
        if limits is None:
            return True if value is True else None
        if type(value) not in (int, float) or not math.isfinite(value):
            return None
        return min(max(value, limits[0]), limits[1])

    def _locked(self, action: Callable[[], None]) -> None:
        with self._lock:
            action()

    def _shown(self) -> np.ndarray:
        """(N,) bool, the points that pass the sliders."""
        shown = self._ranks >= self._hidden.value / 100
        if self._time.value < 100 and self._seen_ns is not None:
            shown &= self._seen_ns <= self._until_ns()
        if self._height.value < 100:  # look below the ceiling
            low, high = self._bounds()
            shown &= self._cloud.points[:, 2] <= low[2] + (high[2] - low[2]) * self._height.value / 100
        return shown

    def _show_points(self) -> None:
        shown = self._shown()
        low, high = self._bounds()
        size = float(np.linalg.norm(high - low)) / 600 * self._size.value
        self._server.scene.add_point_cloud(
            "/map",
            self._cloud.points[shown],
            self._cloud.colors[shown],
            point_size=max(size, 1e-4),
            precision="float32",
            point_shading="flat",
        )
        self._count.value = f"{int(shown.sum()):,}"  # type: ignore[misc]

    def _show_cameras(self, images: Mapping[str, UInt8]) -> None:
        step = max(1, -(-len(self._records) // MAX_CAMERAS))
        chosen = {camera.name: camera for camera in self._records[::step]}
        for name in [name for name in self._cameras if name not in chosen]:
            self._cameras.pop(name)[1].remove()
        low, high = self._bounds()
        depth = float(np.linalg.norm(high - low)) / 40
        for name, camera in chosen.items():
            known = self._cameras.get(name)
            if known is not None and np.array_equal(known[0], camera.map_from_camera):
                continue
            handle = self._add_frustum(camera, images.get(name), depth)
            self._cameras[name] = (camera.map_from_camera, handle)

    def _add_frustum(
        self, camera: CameraRecord, image: UInt8 | None, depth: float
    ) -> viser.CameraFrustumHandle:
        x, y, z, w = Rotation.from_matrix(camera.map_from_camera[:3, :3]).as_quat()
        return self._server.scene.add_camera_frustum(
            f"/cameras/{camera.name}",
            fov=float(2 * np.arctan(camera.height / 2 / camera.intrinsics[1, 1])),
            aspect=camera.width / camera.height,
            scale=max(depth, 1e-4),
            thickness=1.5,
            thickness_units="screen",
            color=_WAY,
            image=image,
            format="jpeg",
            wxyz=(w, x, y, z),
            position=tuple(camera.map_from_camera[:3, 3]),
        )

    def _until_ns(self) -> float:
        """The stamp that the time slider is at."""
        if not self._records:
            return 0.0
        first, last = self._records[0].stamp_ns, self._records[-1].stamp_ns
        return first + (last - first) * self._time.value / 100

    def _show_time(self) -> None:
        """Show the map as it was at the slider's share of the time."""
        with self._lock:
            points, records, known = self._cloud.points, self._records, self._seen_ns is not None
        seen_ns = first_seen(points, records) if records and not known else None  # takes its time: no lock
        with self._lock:
            if seen_ns is not None and points is self._cloud.points:
                self._seen_ns = seen_ns
            self._show_points()
            self._show_way()

    def _show_way(self) -> None:
        """The cameras up to the slider's time, and the line through them."""
        until_ns = self._until_ns()
        way = [record.map_from_camera[:3, 3] for record in self._records if record.stamp_ns <= until_ns]
        places = np.array(way, np.float32).reshape(-1, 3)
        segments = np.stack([places[:-1], places[1:]], 1)
        self._server.scene.add_line_segments("/way", segments, _WAY, thickness=2.5, thickness_units="screen")
        for record in self._records:
            if record.name in self._cameras:
                self._cameras[record.name][1].visible = record.stamp_ns <= until_ns

    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners that hold nearly all points."""
        points = self._cloud.points[:: max(1, len(self._cloud.points) // 50000)]
        if not len(points):
            return np.full(3, -1.0), np.full(3, 1.0)
        low, high = np.percentile(points, (2, 98), axis=0)
        return low, high

    def _look_from_above_the_start(self, client: viser.ClientHandle) -> None:
        """The first view of a new browser: the whole map, obliquely from above."""
        low, high = self._bounds()
        centre, reach = (low + high) / 2, float(np.linalg.norm(high - low))
        client.camera.up_direction = (0.0, 0.0, 1.0)
        client.camera.position = tuple(centre + reach * np.array([-0.4, -0.4, 0.6]))
        client.camera.look_at = tuple(centre)

    def _look_down(self, client: viser.ClientHandle | None) -> None:
        """The floor plan, x to the right."""
        if client is None:
            return
        low, high = self._bounds()
        centre, reach = (low + high) / 2, float(np.linalg.norm(high - low))
        client.camera.up_direction = (0.0, 1.0, 0.0)
        client.camera.position = tuple(centre + np.array([0.0, -1e-3 * reach, reach]))
        client.camera.look_at = tuple(centre)
