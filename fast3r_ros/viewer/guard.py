"""Access control of the web viewer, and checks of browsers' messages that viser itself does not make.

Any page open in a browser of this machine can reach a port of this machine.  A request is therefore served
only if its Host is the viewer's own address (another name that an attacker points at this machine is DNS
rebinding), and a web socket only if its Origin is that address, too.  Browsers' messages are reduced to the
widgets' values within their ranges, clicks on cameras, and camera poses.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import math
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import websockets.asyncio.server
from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from fast3r_ros.errors import UserError

MAX_CONNECTIONS = 80  # open sockets, including those without a request yet; more are closed at once
HANDSHAKE_SECONDS = 5.0  # time limit for a connection's request
MAX_MESSAGE_BYTES = 1 << 16  # size limit of a browser's message; a camera pose has about 300 bytes
COOKIE = "fast3r_viewer"

# (widget, a browser's value) -> a valid value; None rejects it
WidgetCheck = Callable[[str, Any], Any]
NameCheck = Callable[[str], bool]


class AccessGuard:
    """Accepts or rejects the requests and messages of one viewer.

    allowed_hosts: further names by which browsers reach the viewer, next to this machine's own.  token:
    required in the address as `?token=…`; "" requires none.  widget_value: (uuid, value) -> the value within
    the widget's range, or None for an unknown widget or an invalid value.  clickable: whether the scene's
    node with that name accepts clicks.
    """

    def __init__(
        self, allowed_hosts: tuple[str, ...], token: str, widget_value: WidgetCheck, clickable: NameCheck
    ) -> None:
        names = {"localhost", socket.gethostname(), socket.getfqdn(), *allowed_hosts}
        self._names = {name.lower() for name in names} | {f"{socket.gethostname().lower()}.local"}
        self._token = token
        self._widget_value, self._clickable = widget_value, clickable

    def rejection(self, request: Request) -> Response | None:
        """The response to a rejected request; None if the request is accepted."""
        host = request.headers.get_all("Host")
        if len(host) != 1 or not self._own_host(host[0]):
            return _answer(HTTPStatus.FORBIDDEN, "This host name is not one of the viewer's allowed hosts.\n")
        origins = request.headers.get_all("Origin")
        own = {f"http://{host[0].lower()}", f"https://{host[0].lower()}"}
        if any(origin.lower() not in own for origin in origins):
            return _answer(HTTPStatus.FORBIDDEN, "Only the viewer's own page may connect.\n")
        return self._ask_for_token(request, host[0]) if self._token else None

    def message(self, raw: str | bytes) -> bytes | None:
        """The accepted part of a browser's message; None for a rejected message."""
        try:
            content = msgspec.msgpack.decode(raw) if isinstance(raw, bytes) else None
        except (msgspec.DecodeError, RecursionError):
            return None
        if not isinstance(content, dict):
            return None
        kind = content.get("type")
        if kind == "ViewerCameraMessage" and set(content) == _CAMERA_FIELDS and _is_pose(content):
            return msgspec.msgpack.encode(content)
        if kind == "SceneNodeClickMessage":
            return self._click(content)
        uuid, updates = content.get("uuid"), content.get("updates")
        if kind != "GuiUpdateMessage" or not isinstance(uuid, str) or not isinstance(updates, dict):
            return None
        if set(updates) != {"value"}:
            return None
        value = self._widget_value(uuid, updates["value"])
        if value is None:
            return None
        return msgspec.msgpack.encode({"type": kind, "uuid": uuid, "updates": {"value": value}})

    def _click(self, content: Mapping[str, Any]) -> bytes | None:
        """A click on a clickable node, without unused fields: keys, instances, scopes."""
        name, lengths = content.get("name"), {"ray_origin": 3, "ray_direction": 3, "screen_pos": 2}
        if not isinstance(name, str) or not self._clickable(name):
            return None
        if not all(_are_numbers(content.get(field), length) for field, length in lengths.items()):
            return None
        plain = {"type": content["type"], "name": name, **{field: content[field] for field in lengths}}
        return msgspec.msgpack.encode({**plain, "instance_index": None, "modifier": None, "owner": ""})

    def _own_host(self, host: str) -> bool:
        """Whether a Host header is an address or a name of this machine."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True

    def _ask_for_token(self, request: Request, host: str) -> Response | None:
        """Accept a valid cookie, exchange the token of a first address for the cookie, reject the rest."""
        name = f"{COOKIE}_{urlsplit(f'//{host}').port or 80}"  # cookies do not distinguish ports
        cookie = SimpleCookie()
        for line in request.headers.get_all("Cookie"):
            try:
                cookie.load(line)
            except CookieError:
                continue
        if name in cookie and self._is_token(cookie[name].value):
            return None
        given = parse_qs(urlsplit(request.path).query).get("token", [""])[0]
        if not self._is_token(given):
            return _answer(
                HTTPStatus.UNAUTHORIZED, "Open the address with ?token=… that the viewer printed.\n"
            )
        keep = f"{name}={self._token}; HttpOnly; SameSite=Strict; Path=/"
        return _answer(HTTPStatus.SEE_OTHER, "", {"Location": "/", "Set-Cookie": keep})

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


_CAMERA_FIELDS = {
    *("type", "wxyz", "position", "fov", "near", "far"),
    *("image_height", "image_width", "look_at", "up_direction"),
}


def _is_pose(content: Mapping[str, Any]) -> bool:
    """Whether the fields of a camera message are the right number of finite numbers."""
    lengths = {"wxyz": 4, "position": 3, "look_at": 3, "up_direction": 3}
    for field in _CAMERA_FIELDS - {"type"}:
        value = content[field]
        if not _are_numbers(value if field in lengths else [value], lengths.get(field, 1)):
            return False
    return any(content["wxyz"])


def _are_numbers(value: Any, count: int) -> bool:
    """Whether a value is a list of `count` finite numbers."""
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(type(number) in (int, float) and math.isfinite(number) for number in value)


def _answer(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> Response:
    body = text.encode()
    fields = Headers({"Content-Type": "text/plain", "Content-Length": str(len(body)), **(headers or {})})
    return Response(status.value, status.phrase, fields, body)


@contextmanager
def guarded(guard: AccessGuard) -> Iterator[None]:
    """viser servers that start inside are guarded.  Raises UserError for an unsupported viser version.

    viser offers no hook for the server that it starts, so the starting function is replaced for the duration
    of the block.  A viewer that would start without its guard does not start.
    """
    original = websockets.asyncio.server.serve
    used = []

    def serve(handler: Any, *arguments: Any, **options: Any) -> Any:
        if getattr(handler, "__module__", "") != "viser.infra._infra":
            return original(handler, *arguments, **options)
        serve_page = options["process_request"]

        def process(connection: ServerConnection, request: Request) -> Any:
            return guard.rejection(request) or serve_page(connection, request)

        used.append(True)
        options.update(process_request=process, open_timeout=HANDSHAKE_SECONDS, max_size=MAX_MESSAGE_BYTES)
        options.update(create_connection=_connections(guard), logger=_quiet_logger())
        return original(handler, *arguments, **options)

    websockets.asyncio.server.serve = serve  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        websockets.asyncio.server.serve = original  # type: ignore[misc]
    if not used:
        raise UserError(
            "this version of viser cannot be guarded; install the version of requirements/viewer.txt"
        )


def _connections(guard: AccessGuard) -> type[ServerConnection]:
    """The class of one server's connections: bounded in number, their messages checked by the guard."""
    opened: set[ServerConnection] = set()

    class GuardedConnection(ServerConnection):
        """A browser's connection; `recv` returns only messages that the guard accepts."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(opened) >= MAX_CONNECTIONS:
                transport.abort()
            else:
                opened.add(self)

        def connection_lost(self, exc: Exception | None) -> None:
            opened.discard(self)
            super().connection_lost(exc)

        async def recv(self, decode: bool | None = None) -> Any:
            while True:
                message = guard.message(await super().recv(decode))
                if message is not None:
                    return message

    return GuardedConnection


def _quiet_logger() -> logging.Logger:
    """A logger that keeps errors provoked by strangers (bad requests, lost connections) off the console."""
    logger = logging.getLogger("fast3r_ros.viewer.websocket")
    logger.setLevel(logging.CRITICAL)
    return logger
