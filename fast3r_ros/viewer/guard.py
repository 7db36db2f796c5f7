"""Who may use the web viewer, and what a browser may send: checks that viser itself does not make.

Any page that is open in a browser of this machine can reach a port of this machine.  So a request is served
only when it names the viewer's own address in Host (a name that an attacker points at this machine is not
one: DNS rebinding), and a web socket only when its Origin is that same address.  What browsers send is
reduced to the widgets' values within their ranges, clicks on cameras, and camera poses.
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

MAX_CONNECTIONS = 80  # open sockets, those that have not asked for anything included; more are closed at once
HANDSHAKE_SECONDS = 5.0  # until a connection has to have asked
MAX_MESSAGE_BYTES = 1 << 16  # of a message from a browser; a camera pose has some 300
COOKIE = "fast3r_viewer"

# Turns a value that a browser sends for a widget into one that the widget may have; None refuses it.
WidgetCheck = Callable[[str, Any], Any]
NameCheck = Callable[[str], bool]


class Guard:
    """Decides about requests and messages of one viewer.

    allowed_hosts: names, beside this machine's own, by which browsers reach the viewer.  token: what the
    address has to carry as `?token=…`; "" asks for none.  widget_value: (uuid, value) -> the value within the
    widget's range, or None for an unknown widget or a value that is none.  clickable: whether something in
    the scene with that name takes clicks.
    """

    def __init__(
        self, allowed_hosts: tuple[str, ...], token: str, widget_value: WidgetCheck, clickable: NameCheck
    ) -> None:
        names = {"localhost", socket.gethostname(), socket.getfqdn(), *allowed_hosts}
        self._names = {name.lower() for name in names} | {f"{socket.gethostname().lower()}.local"}
        self._token = token
        self._widget_value, self._clickable = widget_value, clickable

    def refusal(self, request: Request) -> Response | None:
        """The answer to a request that is not served; None for one that is."""
        host = request.headers.get_all("Host")
        if len(host) != 1 or not self._own_host(host[0]):
            return _answer(HTTPStatus.FORBIDDEN, "This name is not one of the viewer's (allowed hosts).\n")
        origins = request.headers.get_all("Origin")
        own = {f"http://{host[0].lower()}", f"https://{host[0].lower()}"}
        if any(origin.lower() not in own for origin in origins):
            return _answer(HTTPStatus.FORBIDDEN, "Only the viewer's own page may connect.\n")
        return self._ask_for_token(request, host[0]) if self._token else None

    def message(self, raw: str | bytes) -> bytes | None:
        """The part of a browser's message that is let through; None for nothing."""
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
        """A click on something that takes clicks, without what nobody asks for: keys, instances, scopes."""
        name, lengths = content.get("name"), {"ray_origin": 3, "ray_direction": 3, "screen_pos": 2}
        if not isinstance(name, str) or not self._clickable(name):
            return None
        if not all(_are_numbers(content.get(field), length) for field, length in lengths.items()):
            return None
        plain = {"type": content["type"], "name": name, **{field: content[field] for field in lengths}}
        return msgspec.msgpack.encode({**plain, "instance_index": None, "modifier": None, "owner": ""})

    def _own_host(self, host: str) -> bool:
        """Whether a Host header is an address, which no foreign name can be, or a name of this machine."""
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
        """Serve who has the cookie; turn the token of the first address into it; refuse the rest."""
        name = f"{COOKIE}_{urlsplit(f'//{host}').port or 80}"  # cookies know no ports
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
                HTTPStatus.UNAUTHORIZED, "Open the address with ?token=… as the viewer shows it.\n"
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
    """Whether the fields of a camera message are finite numbers, as many as they should be."""
    lengths = {"wxyz": 4, "position": 3, "look_at": 3, "up_direction": 3}
    for field in _CAMERA_FIELDS - {"type"}:
        value = content[field]
        if not _are_numbers(value if field in lengths else [value], lengths.get(field, 1)):
            return False
    return any(content["wxyz"])


def _are_numbers(value: Any, count: int) -> bool:
    """Whether a value is a list of so many finite numbers."""
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(type(number) in (int, float) and math.isfinite(number) for number in value)


def _answer(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> Response:
    body = text.encode()
    fields = Headers({"Content-Type": "text/plain", "Content-Length": str(len(body)), **(headers or {})})
    return Response(status.value, status.phrase, fields, body)


@contextmanager
def guarded(guard: Guard) -> Iterator[None]:
    """viser servers that start inside are guarded.  UserError when this version of viser starts another way.

    viser hands no hook through to the server that it starts, so the starting function is replaced for that
    moment; a viewer that would start without its guard does not start at all.
    """
    original = websockets.asyncio.server.serve
    used = []

    def serve(handler: Any, *arguments: Any, **options: Any) -> Any:
        if getattr(handler, "__module__", "") != "viser.infra._infra":
            return original(handler, *arguments, **options)
        serve_page = options["process_request"]

        def process(connection: ServerConnection, request: Request) -> Any:
            return guard.refusal(request) or serve_page(connection, request)

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
        raise UserError("this version of viser cannot be guarded; install the one of requirements/viewer.txt")


def _connections(guard: Guard) -> type[ServerConnection]:
    """The class of one server's connections: a bounded number, whose messages pass the guard."""
    opened: set[ServerConnection] = set()

    class GuardedConnection(ServerConnection):
        """A browser's connection; `recv` gives only messages that the guard lets through."""

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
    """A logger that keeps what strangers can provoke (broken requests, lost connections) off the console."""
    logger = logging.getLogger("fast3r_ros.viewer.websocket")
    logger.setLevel(logging.CRITICAL)
    return logger
