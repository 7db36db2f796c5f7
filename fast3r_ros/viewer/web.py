"""A map in the browser: points, cameras with their pictures, a timeline; through viser.

Bound to 127.0.0.1 by default; `viewer/guard.py` decides who is served and what a browser may send.  The
points are sent once; `viewer/page.js` filters and colours them in the browser.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fast3r_ros.errors import UserError, optional
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Cloud, Float32, UInt8
from fast3r_ros.viewer.point_chunks import (
    STEPS,
    cell_size,
    chunk_numbers,
    confidence_levels,
    marked,
    origin_near,
    thinned,
)
from fast3r_ros.viewer.timeline import Dating

with optional("viser", "the web viewer"):
    import viser
    from viser import ViserServer

    from fast3r_ros.viewer.guard import AccessGuard, guarded
    from fast3r_ros.viewer.page import Controls, Style, send_script, send_style
    from fast3r_ros.viewer.scene import Cameras, Rulers, frustum_size
    from fast3r_ros.viewer.views import BrowserViews

MAX_POINTS = 1_000_000  # limit for a browser; a larger cloud is thinned evenly
_PLAY_S, _PLAY_TICK_S = 30.0, 0.1  # a longer map is played faster than it was recorded
_PLACES = 16  # along a chunk, for dating points


class WebViewer:
    """Serves one map that may grow while it is shown.  Thread-safe; browsers may connect and leave.

    host, port: address to listen on; a port in use is replaced by the next free one, 0 by any.  token:
    required in a browser's first address as `?token=…`; "" requires none.  allowed_hosts: names, besides this
    machine's own, by which browsers may reach it.  title: of the page.  Raises UserError for an address that
    is not this machine's, a port that does not exist, or an invalid token.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8080,
        token: str = "",
        allowed_hosts: Sequence[str] = (),
        title: str = "fast3r",
    ) -> None:
        if token and not re.fullmatch(r"[A-Za-z0-9_-]{8,128}", token):
            raise UserError("the viewer's token has to be 8 to 128 letters, digits, '-' and '_'")
        if not 0 <= port <= 65535:
            raise UserError(f"port {port} does not exist; give 0 to 65535")
        try:  # viser would wait forever for an address it cannot bind
            socket.create_server((host, 0)).close()
        except OSError as error:
            raise UserError(f"cannot listen on {host}: {error.strerror or error}") from error
        self._lock = threading.Lock()
        self._points = np.zeros((0, 3), np.float32)  # as in the browser, relative to the origin
        self._origin = np.zeros(3, np.float32)
        self._levels = self._slots = np.zeros(0, np.uint16)
        self._below = np.zeros(STEPS)  # share of points below each confidence level
        self._chunks: dict[int, tuple[Float32, UInt8, viser.PointCloudHandle]] = {}
        self._dating = Dating()
        self._images: dict[str, UInt8] = {}
        self._playing: threading.Event | None = None  # set to end it
        self._token = token
        with guarded(AccessGuard(tuple(allowed_hosts), token, self._widget_value, self._is_clickable)):
            self._server = ViserServer(host=host, port=port, label=title, verbose=False)
        send_script(self._server, title)
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._server.gui.main_panel.dock_right()  # next to the map, not over it
        self._server.scene.set_up_direction("+z")
        self._map = self._server.scene.add_frame("/map", show_axes=False)
        self._views = BrowserViews(self._server)
        self._cameras = Cameras(self._server, self._look_through)
        self._rulers = Rulers(self._server)
        self._controls = Controls(self._server.gui)
        self._connect_controls()

    @property
    def address(self) -> str:
        """The URL to open in a browser."""
        query = f"/?token={self._token}" if self._token else ""
        return f"http://{self._server.get_host()}:{self._server.get_port()}{query}"

    @property
    def open_to_others(self) -> bool:
        """Whether other machines can reach the viewer without a token."""
        host = self._server.get_host()
        return not self._token and host != "localhost" and not host.startswith("127.") and host != "::1"

    @property
    def points_shown(self) -> int:
        """Number of points that pass the sliders."""
        with self._lock:
            return self._count(self._style())

    def show(
        self,
        cloud: Cloud,
        cameras: Sequence[CameraRecord],
        images: Mapping[str, UInt8] | None = None,
        unit: str = "map units",
    ) -> None:
        """Replace the shown map; browsers get the changes.

        cameras: in time order; images: name -> (h, w, 3) RGB for their frusta.  unit: of the map's lengths.
        """
        with self._lock:
            cloud = thinned(cloud, MAX_POINTS)
            cell = cell_size(cloud.points)
            self._levels = confidence_levels(cloud.confidence)
            self._slots = self._dating.slots(cloud.points, cameras, cell / _PLACES)
            self._origin = origin_near(cloud.points, cell)
            self._points = marked(cloud.points - self._origin, self._levels, self._slots)
            counts = np.bincount(self._levels, minlength=STEPS)
            self._below = (np.cumsum(counts) - counts) / max(len(self._levels), 1)
            self._images = dict(images or {})
            low, high = self._views.fit(cloud.points)
            with self._server.atomic():
                self._map.position = self._origin
                self._send_chunks(cloud.colors, chunk_numbers(cloud.points, cell), point_size=cell / 75)
                self._cameras.update(cameras, self._images, frustum_size(cameras, cell))
                self._rulers.update(low, high, "units" if unit == "unknown" else unit)
        self._controls.last_until(self._dating.timeline.duration_s)
        self._apply_filters()

    def stop(self) -> None:
        """Close the port and all connections."""
        self._pause()
        self._server.stop()

    def _connect_controls(self) -> None:
        controls = self._controls
        for widget in controls.filters:
            widget.on_update(lambda _: self._apply_filters())
        for widget in controls.parts:
            widget.on_update(lambda _: self._apply_parts())
        controls.play.on_click(lambda _: self._play_or_pause())
        controls.above.on_click(lambda event: self._views.from_above(event.client))
        controls.whole.on_click(lambda event: self._views.whole_map(event.client))
        controls.back.on_click(lambda event: self._views.back(event.client))

    def _widget_value(self, uuid: str, value: Any) -> Any:
        return self._controls.value(uuid, value)

    def _is_clickable(self, node: str) -> bool:
        return self._cameras.is_clickable(node)

    def _send_chunks(self, colors: UInt8, numbers: NDArray[np.int64], point_size: float) -> None:
        """Send the changed chunks and remove the missing ones."""
        order = np.argsort(numbers, kind="stable")
        found, starts = np.unique(numbers[order], return_index=True)
        parts = np.split(order, starts[1:]) if len(found) else []
        chunks = {int(number): part for number, part in zip(found, parts, strict=True)}
        for number in self._chunks.keys() - chunks.keys():
            self._chunks.pop(number)[2].remove()
        for number, part in chunks.items():
            points, colours = self._points[part], colors[part]
            known = self._chunks.get(number)
            if known is not None and _same(known[0], points) and _same(known[1], colours):
                known[2].point_size = point_size
                continue
            handle = self._server.scene.add_point_cloud(
                f"/map/{number}",
                points,
                colours,
                point_size=point_size,
                precision="float32",
                point_shading="flat",
            )
            self._chunks[number] = (points, colours, handle)

    def _style(self) -> Style:
        """The style that the widgets describe."""
        controls, cut = self._controls, self._controls.height.value / 100
        low, high = (float(corner[2] - self._origin[2]) for corner in self._views.bounds)
        return Style(
            # the highest level that hides at most the requested share
            min_level=int(np.searchsorted(self._below, controls.hidden.value / 100, side="right")) - 1,
            max_slot=self._dating.timeline.slot_at(controls.time.value),
            max_height=None if cut >= 1 else low + (high - low) * cut,
            size=float(controls.size.value),
            colouring=controls.colouring.value,
            levels=(float(np.searchsorted(self._below, 0.05)), float(np.searchsorted(self._below, 0.95))),
            heights=(low, high),
        )

    def _count(self, style: Style) -> int:
        """Number of points that the browser draws."""
        shown = (self._levels >= style.min_level) & (self._slots <= style.max_slot)
        if style.max_height is not None:
            shown &= self._points[:, 2] <= style.max_height
        return int(shown.sum())

    def _apply_filters(self) -> None:
        """Apply the widgets' filters: sends numbers, not points."""
        with self._lock:
            style = self._style()
            send_style(self._server, style)
            self._cameras.show_until(self._dating.timeline.stamp_at(self._controls.time.value))
            self._controls.count.value = f"{self._count(style):,}"

    def _apply_parts(self) -> None:
        """Apply the boxes."""
        cameras, pictures, trajectory, grid, axes = (box.value for box in self._controls.parts)
        with self._lock:
            self._cameras.show_parts(cameras, pictures, trajectory)
            self._rulers.show_parts(grid, axes)
            self._views.show_pictures(pictures)

    def _look_through(self, name: str, client: Any) -> None:
        with self._lock:
            record, image = self._cameras.record(name), self._images.get(name)
        if record is not None:
            self._views.through(client, record, image)

    def _play_or_pause(self) -> None:
        if self._playing is not None:
            self._pause()
            return
        self._playing = threading.Event()
        self._controls.play.label = "pause"
        threading.Thread(target=self._play, args=(self._playing,), name="viewer_play", daemon=True).start()

    def _pause(self) -> None:
        if self._playing is not None:
            self._playing.set()
            self._playing = None
            self._controls.play.label = "play"

    def _play(self, end: threading.Event) -> None:
        """Move the time slider to its end; a slider at its end starts from the beginning."""
        slider = self._controls.time
        if slider.value >= slider.max:
            slider.value = 0.0
        step = _PLAY_TICK_S * max(1.0, slider.max / _PLAY_S)
        while not end.wait(_PLAY_TICK_S) and slider.value < slider.max:
            slider.value = min(round(slider.value + step, 1), slider.max)
        if not end.is_set():
            self._pause()


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays have the same bytes; `==` would ignore marks in coordinates near zero."""
    return one.shape == other.shape and one.tobytes() == other.tobytes()
