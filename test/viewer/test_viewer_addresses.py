"""The web viewer's server without a browser: its addresses, and repeated maps."""

from __future__ import annotations

import socket

import numpy as np
import pytest

pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements/viewer.txt")
from floor import camera, coloured_floor
from patience import HANG_SECONDS

from fast3r_ros.errors import UserError
from fast3r_ros.mapping.data import Cloud
from fast3r_ros.viewer.web import WebViewer


@pytest.fixture
def viewer():
    viewer = WebViewer(port=0)
    yield viewer
    viewer.stop()


def test_only_this_machine_has_access_by_default(viewer):
    port = int(viewer.address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=HANG_SECONDS):
        pass
    with (
        pytest.raises(OSError, match=r"refused"),
        socket.create_connection(("127.0.0.2", port), timeout=HANG_SECONDS),
    ):
        pass


def test_cameras_follow_corrections_and_time(viewer):
    cameras = [camera(index) for index in range(4)]
    viewer.show(coloured_floor(100), cameras, {"000001": np.zeros((48, 64, 3), np.uint8)})
    viewer.show(coloured_floor(100), cameras[:2], {})
    assert viewer.points_shown == 100
    viewer.show(Cloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32)), [])
    assert viewer.points_shown == 0


def test_an_address_of_another_machine_gives_a_one_line_error():
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1"):
        WebViewer("192.0.2.1", 0)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_does_not_exist_gives_a_one_line_error(port):
    with pytest.raises(UserError, match=f"port {port} does not exist"):
        WebViewer(port=port)
