"""Access control of the viewer, and permitted changes; raw and web sockets act as strangers."""

from __future__ import annotations

import asyncio
import http.client
import math
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements/viewer.txt")
import msgspec
import viser
import websockets.asyncio.connection
from patience import HANG_SECONDS

from fast3r_ros.errors import UserError
from fast3r_ros.geometry.rigid import rigid_matrix
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Cloud
from fast3r_ros.viewer.guard import MAX_CONNECTIONS, MAX_MESSAGE_BYTES
from fast3r_ros.viewer.web import WebViewer

POINTS = 2000
TOKEN = "a-token-of-some-length"
PROTOCOL = [f"viser-v{viser.__version__}"]


def random_cloud(count: int = POINTS) -> Cloud:
    points = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    return Cloud(points, np.zeros((count, 3), np.uint8), np.linspace(1, 2, count).astype(np.float32))


def opened(**options: object) -> WebViewer:
    viewer = WebViewer(port=0, **options)
    viewer.show(random_cloud(), [])
    return viewer


@pytest.fixture(scope="module")
def viewer():
    viewer = opened(allowed_hosts=["robot.lan"])
    yield viewer
    viewer.stop()


@pytest.fixture(scope="module")
def locked():
    viewer = opened(token=TOKEN)
    yield viewer
    viewer.stop()


def port_of(viewer: WebViewer) -> int:
    return viewer._server.get_port()


def page(viewer: WebViewer, headers: dict[str, str], path: str = "/") -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port_of(viewer), timeout=HANG_SECONDS)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def web_socket(viewer: WebViewer, origin: str | None = "own", **options: object):
    port = port_of(viewer)
    origin = f"http://127.0.0.1:{port}" if origin == "own" else origin
    address = f"ws://127.0.0.1:{port}"
    return websockets.connect(address, subprotocols=PROTOCOL, origin=origin, max_size=None, **options)


async def received(socket: websockets.ClientConnection, at_least: int) -> int:
    """Bytes received, once there are at least `count`."""
    total = 0
    while total < at_least:
        total += len(await asyncio.wait_for(socket.recv(), HANG_SECONDS))
    return total


async def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "", "["]
)
def test_a_foreign_host_name_is_not_served(viewer, host):
    assert page(viewer, {"Host": host}).status == 403


@pytest.mark.parametrize(
    "host", ["127.0.0.1:1", "localhost", "[::1]:8080", "192.168.7.9:8080", "robot.lan", "ROBOT.lan:80"]
)
def test_own_addresses_and_allowed_names_are_served(viewer, host):
    assert page(viewer, {"Host": host}).status == 200


def test_the_machine_s_own_name_is_served(viewer):
    assert page(viewer, {"Host": f"{socket.gethostname()}:{port_of(viewer)}"}).status == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost:{port}", "file://", "http://["],
)
def test_a_page_from_elsewhere_cannot_connect(viewer, origin):
    async def connect() -> None:
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with web_socket(viewer, origin.format(port=port_of(viewer))):
                pass
        assert refused.value.response.status_code == 403

    asyncio.run(connect())


def test_the_viewer_s_own_page_reads_the_map(viewer):
    async def connect() -> int:
        async with web_socket(viewer) as own:
            return await received(own, POINTS * 12)

    assert asyncio.run(connect()) >= POINTS * 12


def update(uuid: str, **updates: object) -> bytes:
    return msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": uuid, "updates": updates})


CAMERA = {
    **{"type": "ViewerCameraMessage", "wxyz": [1.0, 0, 0, 0], "position": [0.0, 0, 0], "fov": 1.0},
    **{"near": 0.1, "far": 10.0, "image_height": 10, "image_width": 10},
    **{"look_at": [0.0, 0, 1], "up_direction": [0.0, 0, 1]},
}


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "95", None, True, [95], {"a": 1}, b"95"], ids=repr
)
def test_values_that_are_no_numbers_change_nothing(viewer, value):
    before = viewer._controls.hidden.value
    messages = [
        update(viewer._controls.hidden._impl.uuid, value=value),
        update(viewer._controls.time._impl.uuid, value=value),
    ]
    asyncio.run(send(viewer, messages))
    assert viewer._controls.hidden.value == before
    assert viewer._controls.time.value == viewer._controls.time.max


@pytest.mark.parametrize(("value", "expected"), [(1e308, 95), (-3, 0), (2**63, 95), (12.0, 12)])
def test_numbers_are_clamped_to_the_widget_s_range(viewer, value, expected):
    asyncio.run(send(viewer, [update(viewer._controls.hidden._impl.uuid, value=value)]))
    assert viewer._controls.hidden.value == expected
    assert viewer.points_shown == pytest.approx(POINTS * (1 - expected / 100), abs=0.01 * POINTS)
    viewer._controls.hidden.value = 0


async def send(viewer: WebViewer, messages: list[bytes | str]) -> None:
    """Send messages and return when they have been handled, which a last, allowed one shows."""
    async with web_socket(viewer) as own:
        for message in messages:
            await own.send(message)
        mark = 2.0 if viewer._controls.size.value != 2.0 else 3.0
        await own.send(update(viewer._controls.size._impl.uuid, value=mark))
        await until(lambda: viewer._controls.size.value == mark, "the viewer handles no messages any more")


def test_invalid_widget_values_are_ignored(viewer, monkeypatch):
    """Share links (a tunnel to a public server), uploads, other properties and garbage do not arrive."""
    handled: list[str] = []
    for name in ("request_share_url", "disconnect_share_url"):
        monkeypatch.setattr(viewer._server, name, lambda *_, name=name: handled.append(name))
    hidden = viewer._controls.hidden._impl.uuid
    deep = b"\x91" * 5000 + b"\xc0"
    messages = [
        *(msgspec.msgpack.encode({"type": kind}) for kind in ("ShareUrlRequest", "ShareUrlDisconnect", "X")),
        msgspec.msgpack.encode({"type": "FileTransferStartUpload", "source_component_uuid": hidden}),
        update(hidden, value=5, max=1e9),
        update(hidden, label="you have been hacked"),
        update(viewer._controls.count._impl.uuid, value="0"),
        update("no such widget", value=5),
        msgspec.msgpack.encode({**CAMERA, "position": [math.nan, 0.0, 0.0]}),
        msgspec.msgpack.encode({**CAMERA, "wxyz": [0.0] * 4}),
        msgspec.msgpack.encode(CAMERA),
        *(b"", b"\xff\x00", deep, "text", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode(None)),
    ]
    asyncio.run(send(viewer, messages))
    assert not handled
    assert (viewer._controls.hidden.value, viewer._controls.hidden.max, viewer._controls.hidden.label) == (
        0,
        95,
        "hide least confident (%)",
    )
    assert viewer._controls.count.value == f"{POINTS:,}"


CLICK = {
    **{"type": "SceneNodeClickMessage", "name": "/cameras/000000", "instance_index": None, "owner": ""},
    **{"ray_origin": [0.0, 0, 0], "ray_direction": [1.0, 0, 0], "screen_pos": [0.5, 0.5], "modifier": None},
}


def test_only_clicks_on_cameras_arrive_without_unused_fields():
    pose = rigid_matrix(np.eye(3), [0.0, 0, 0])
    record = CameraRecord("000000", 0, "camera", 64, 48, np.diag([50.0, 50, 1]), pose)
    viewer = WebViewer(port=0)
    handled: list[tuple[str, object]] = []
    viewer._cameras._on_click = lambda name, client: handled.append((name, client.client_id))
    try:
        viewer.show(random_cloud(), [record])
        messages = [
            {**CLICK, "name": "/map/0"},
            {**CLICK, "name": ["/cameras/000000"]},
            {**CLICK, "name": "/cameras/000001"},
            {**CLICK, "ray_origin": [math.nan, 0.0, 0.0]},
            {**CLICK, "screen_pos": [0.5]},
            {**CLICK, "modifier": "shift", "owner": "somebody", "instance_index": 7},
        ]
        asyncio.run(send(viewer, [msgspec.msgpack.encode(each) for each in [CAMERA, *messages]]))
        asyncio.run(until(lambda: len(handled) == 1, "the click on a camera does not arrive"))
        assert handled[0][0] == "000000"
    finally:
        viewer.stop()


def test_boxes_and_colours_accept_only_their_values(viewer):
    box, colour = viewer._controls.grid, viewer._controls.colouring
    given = [(box, 1), (box, "true"), (box, None), (colour, "rainbow"), (colour, ["height"]), (colour, 3)]
    asyncio.run(send(viewer, [update(widget._impl.uuid, value=value) for widget, value in given]))
    assert (box.value, colour.value) == (True, "picture")
    asyncio.run(
        send(viewer, [update(box._impl.uuid, value=False), update(colour._impl.uuid, value="height")])
    )
    assert (box.value, colour.value) == (False, "height")


def test_a_message_that_is_too_large_costs_only_its_sender_the_connection(viewer):
    async def flood() -> None:
        async with web_socket(viewer) as own, web_socket(viewer) as other:
            await own.send(bytes(MAX_MESSAGE_BYTES + 1))
            await asyncio.wait_for(own.wait_closed(), HANG_SECONDS)
            await received(other, POINTS * 12)

    asyncio.run(flood())


def test_a_token_is_asked_for_once_and_kept_as_a_cookie(locked):
    host = {"Host": f"127.0.0.1:{port_of(locked)}"}
    assert page(locked, host).status == 401
    assert page(locked, host, "/?token=another-token-of-length").status == 401
    assert page(locked, {**host, "Cookie": f"fast3r_viewer_{port_of(locked)}=wrong"}).status == 401
    first = page(locked, host, locked.address.partition(str(port_of(locked)))[2])
    assert first.status == 303
    cookie = first.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    kept = {"Cookie": cookie.partition(";")[0]}
    assert page(locked, {**host, **kept}).status == 200

    async def connect() -> int:
        with pytest.raises(websockets.InvalidStatus):
            async with web_socket(locked):
                pass
        async with web_socket(locked, additional_headers=kept) as own:
            return await received(own, POINTS * 12)

    assert asyncio.run(connect()) >= POINTS * 12


@pytest.mark.parametrize("token", ["short", "with space 123", "a;b=cdefgh", "x" * 200, "ümläüte-zählen"])
def test_a_token_that_does_not_fit_into_an_address_is_rejected(token):
    with pytest.raises(UserError, match="token"):
        WebViewer(port=0, token=token)


def test_a_flood_of_half_open_connections_is_bounded(viewer):
    """Silent sockets: the viewer limits them, keeps running, and serves again when they have gone."""
    before = len(os.listdir("/proc/self/fd"))
    strangers = []
    for _ in range(4 * MAX_CONNECTIONS):
        stranger = socket.create_connection(("127.0.0.1", port_of(viewer)), timeout=HANG_SECONDS)
        stranger.send(b"GET / HTTP/1.1\r\n")
        strangers.append(stranger)
    viewer.show(random_cloud(), [])
    asyncio.run(
        until(
            lambda: len(os.listdir("/proc/self/fd")) - before <= len(strangers) + MAX_CONNECTIONS + 5,
            "the surplus is not closed",
        )
    )
    for stranger in strangers:
        stranger.close()

    def served() -> bool:
        try:
            return page(viewer, {}).status == 200
        except OSError:  # the server has not yet seen all of them go
            return False

    asyncio.run(until(served, "nobody is served after the flood"))


def test_fifty_browsers_that_do_not_read_hold_no_copies_of_the_map(viewer, monkeypatch):
    """Each `show` replaces the data waiting for a slow browser; otherwise 600 clouds of 1.5 MB would wait.

    Without keepalive, which ends a connection that is not read for 40 s, and with it what is measured.
    """
    monkeypatch.setattr(websockets.asyncio.connection.Connection, "start_keepalive", lambda connection: None)
    clouds = [random_cloud(100_000), random_cloud(100_000)]
    clouds[1].colors[:] = 255  # all of it has changed

    def resident_mb() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def watch() -> float:
        slow = [await web_socket(viewer, ping_interval=None, max_queue=1) for _ in range(50)]
        for turn in range(4):  # each connection fills what the system buffers for it
            await asyncio.to_thread(viewer.show, clouds[turn % 2], [])
        before = resident_mb()
        for turn in range(12):
            await asyncio.to_thread(viewer.show, clouds[turn % 2], [])
        grown = resident_mb() - before
        for each in slow[:-1]:
            each.transport.abort()
        await received(slow[-1], 12 * 100_000)  # who reads again gets the newest map
        slow[-1].transport.abort()
        return grown

    grown = asyncio.run(watch())
    assert grown < 50 * 12 * 1.5 / 4
    print(f"memory grew by {grown:.0f} MB")
