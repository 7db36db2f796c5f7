"""Bytes sent to a browser: a web socket counts the data for a map of a million points."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements/viewer.txt")
import msgspec
import viser
import websockets
from patience import HANG_SECONDS

from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Cloud
from fast3r_ros.viewer.web import MAX_POINTS, WebViewer

CLOUD_BYTES = 15 * MAX_POINTS  # three coordinates of 4 bytes and three colours
CAMERAS = 40
TICK_BYTES = 1500  # of a tick of a slider
CORNER = 0.1  # share of the room, along each side, that changes in an update
VIEW = {
    **{"type": "ViewerCameraMessage", "wxyz": [1.0, 0, 0, 0], "position": [0.0, 0, 0], "fov": 1.0},
    **{"near": 0.1, "far": 10.0, "image_height": 10, "image_width": 10},
    **{"look_at": [0.0, 0, 1], "up_direction": [0.0, -1, 0]},
}


def room() -> Cloud:
    generator = np.random.default_rng(0)
    points = generator.uniform(0, 8, (MAX_POINTS, 3)).astype(np.float32)
    colours = generator.integers(0, 256, (MAX_POINTS, 3)).astype(np.uint8)
    return Cloud(points, colours, (1 + generator.exponential(size=MAX_POINTS)).astype(np.float32))


def camera(index: int) -> CameraRecord:
    """Goes along y, looks along x."""
    pose = rigid_matrix(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), [0, index * 0.2, 4])
    matrix = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    return CameraRecord(f"{index:06d}", index * 10**9, "camera", 64, 48, matrix, pose)


def pictures(count: int) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    return {camera(index).name: noise for index in range(count)}


class Browser:
    """A connection that counts what it receives."""

    def __init__(self, viewer: WebViewer) -> None:
        self._port = viewer._server.get_port()
        self.received = 0

    async def __aenter__(self) -> Browser:
        self._socket = await websockets.connect(
            f"ws://127.0.0.1:{self._port}",
            subprotocols=[f"viser-v{viser.__version__}"],
            origin=f"http://127.0.0.1:{self._port}",
            max_size=None,
        )
        self._task = asyncio.create_task(self._receive())
        await self._socket.send(msgspec.msgpack.encode(VIEW))  # only then the client is connected
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await self._socket.close()

    async def _receive(self) -> None:
        async for message in self._socket:
            self.received += len(message)

    async def set(self, widget: Any, value: object) -> None:
        """Like a browser when a slider is moved."""
        update = {"type": "GuiUpdateMessage", "uuid": widget._impl.uuid, "updates": {"value": value}}
        await self._socket.send(msgspec.msgpack.encode(update))

    async def settled(self, at_least: int = 1) -> int:
        """Bytes since the last call, once no more arrive while the server answers pings."""
        last, limit = -1, time.monotonic() + HANG_SECONDS
        while self.received < at_least or self.received != last:
            last = self.received
            assert time.monotonic() < limit, f"{last} bytes came, {at_least} were expected"
            for _ in range(3):
                await asyncio.sleep(0.1)
                await (await self._socket.ping())
        total, self.received = self.received, 0
        return total


@pytest.fixture(scope="module")
def viewer():
    viewer = WebViewer(port=0)
    yield viewer
    viewer.stop()


def run(viewer: WebViewer, scenario: Callable[[Browser], Coroutine[Any, Any, None]]) -> None:
    async def connected() -> None:
        async with Browser(viewer) as browser:
            await scenario(browser)

    asyncio.run(connected())


def test_a_slider_s_tick_sends_the_property_and_not_the_cloud(viewer):
    cameras = [camera(index) for index in range(CAMERAS)]
    viewer.show(room(), cameras, pictures(CAMERAS))
    controls = viewer._controls

    async def scenario(browser: Browser) -> None:
        assert await browser.settled(CLOUD_BYTES) >= CLOUD_BYTES
        ticks = {
            "confidence": (controls.hidden, 40),
            "height": (controls.height, 60),
            "size": (controls.size, 2.5),
            "time": (controls.time, 38.0),
            "colour": (controls.colouring, "height"),
            "grid": (controls.grid, False),
            "cameras": (controls.cameras, False),
        }
        for name, (widget, value) in ticks.items():
            await browser.set(widget, value)
            received = await browser.settled()
            print(f"{name}: {received} bytes")
            assert widget.value == value
            assert received < TICK_BYTES, name
        assert 0.1 * MAX_POINTS < viewer.points_shown < 0.5 * MAX_POINTS
        await browser.set(controls.time, 0.0)
        received = await browser.settled()
        print(f"{CAMERAS - 2} cameras go: {received} bytes")
        assert received < TICK_BYTES + 200 * CAMERAS

    run(viewer, scenario)


def test_an_update_sends_what_has_changed(viewer):
    cloud, cameras = room(), [camera(index) for index in range(CAMERAS)]
    viewer.show(cloud, cameras, pictures(CAMERAS))
    corner = (cloud.points < 8 * CORNER).all(1)

    async def scenario(browser: Browser) -> None:
        await browser.settled(CLOUD_BYTES)
        await asyncio.to_thread(viewer.show, cloud, cameras, pictures(CAMERAS))
        assert await browser.settled(0) < TICK_BYTES, "nothing has changed"
        cloud.colors[corner] += 1
        await asyncio.to_thread(viewer.show, cloud, cameras, pictures(CAMERAS))
        received = await browser.settled()
        print(f"a corner: {received} bytes of {CLOUD_BYTES}")
        assert 15 * corner.sum() < received < 0.02 * CLOUD_BYTES
        moved = [
            replace(each, map_from_camera=each.map_from_camera + 1e-3 * np.eye(4, k=3)) for each in cameras
        ]
        await asyncio.to_thread(viewer.show, cloud, moved, pictures(CAMERAS))
        received = await browser.settled()
        print(f"{CAMERAS} poses: {received} bytes")
        assert received < 1000 * CAMERAS, "poses go without their pictures"
        grown = [*moved, camera(CAMERAS)]
        await asyncio.to_thread(viewer.show, cloud, grown, pictures(CAMERAS + 1))
        received = await browser.settled()
        print(f"another camera: {received} bytes")
        assert received < 20_000

    run(viewer, scenario)
