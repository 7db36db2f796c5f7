"""The web viewer in a real browser: it draws, its sliders act, and a browser that leaves harms nothing."""

from __future__ import annotations

import io
import shutil
import socket
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements/viewer.txt")
pytest.importorskip("selenium", reason="selenium is not installed: pip install -r requirements/test.txt")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Cloud
from fast3r_ros.viewer.web import WebViewer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: apt install chromium chromium-driver"
)
COLOURS = np.array([[220, 40, 40], [40, 200, 60], [40, 60, 220], [230, 200, 40]], np.uint8)


def coloured_floor(count: int = 40000) -> Cloud:
    """A floor of four coloured quarters; confidence rises along x."""
    generator = np.random.default_rng(0)
    points = generator.uniform(-2, 2, (count, 3)).astype(np.float32) * [1, 1, 0.01]
    quarter = (points[:, 0] > 0) * 2 + (points[:, 1] > 0)
    confidence = (1 + points[:, 0] + 2).astype(np.float32)
    return Cloud(points.astype(np.float32), COLOURS[quarter.astype(int)], confidence)


def camera(index: int) -> CameraRecord:
    pose = np.eye(4)
    pose[0, 3] = 0.1 * index
    matrix = np.array([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]])
    return CameraRecord(f"{index:06d}", index * 10**9, "camera", 64, 48, matrix, pose)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


@pytest.fixture
def viewer():
    viewer = WebViewer(port=0)
    yield viewer
    viewer.stop()


@pytest.fixture
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--window-size=900,600",
    ):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield browser
    browser.quit()


def colour_counts(screenshot: bytes) -> list[int]:
    """Pixels of the screenshot near each of the four colours."""
    picture = np.asarray(Image.open(io.BytesIO(screenshot)).convert("RGB")).astype(int)
    return [int((np.abs(picture - colour).max(-1) < 30).sum()) for colour in COLOURS]


@needs_chromium
def test_the_page_draws_and_the_slider_hides_points(viewer, browser, tmp_path):
    cloud = coloured_floor()
    viewer.show(cloud, [camera(index) for index in range(5)], {})
    browser.get(viewer.address)
    wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "[role=slider]"), "the sliders")
    wait_for(lambda: min(colour_counts(browser.get_screenshot_as_png())) > 300, "points of four colours")
    browser.save_screenshot(str(tmp_path / "viewer.png"))
    assert viewer.points_shown == len(cloud.points)
    slider = browser.find_elements(By.CSS_SELECTOR, "[role=slider]")[0]
    slider.send_keys(Keys.END)
    expected = round(0.05 * len(cloud.points))
    wait_for(lambda: abs(viewer.points_shown - expected) <= 1, "the server follows the slider")
    wait_for(
        lambda: any(
            field.get_attribute("value") == f"{viewer.points_shown:,}"
            for field in browser.find_elements(By.CSS_SELECTOR, "input[disabled]")
        ),
        "the page shows the number",
    )
    # confidence rises along x: what is left lies where x is largest, which two of the colours cover
    wait_for(lambda: sorted(colour_counts(browser.get_screenshot_as_png()))[1] < 60, "two colours go")


@needs_chromium
def test_a_browser_that_leaves_mid_stream_harms_nothing(viewer, browser):
    cloud = coloured_floor(5000)
    stop = threading.Event()
    errors: list[BaseException] = []

    def stream() -> None:
        index = 0
        try:
            while not stop.is_set():
                viewer.show(cloud, [camera(i) for i in range(index % 20 + 1)], {})
                index += 1
                time.sleep(0.05)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        browser.get(viewer.address)
        wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "[role=slider]"), "the page")
        browser.quit()
        time.sleep(1.0)
        assert thread.is_alive()
        assert not errors
    finally:
        stop.set()
        thread.join(10)
    viewer.show(cloud, [], {})
    assert viewer.points_shown == 5000


def test_only_this_machine_can_look_by_default(viewer):
    port = int(viewer.address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    with pytest.raises(OSError, match=r"refused"), socket.create_connection(("127.0.0.2", port), timeout=5):
        pass


def test_cameras_follow_corrections_and_time(viewer):
    cameras = [camera(index) for index in range(4)]
    viewer.show(coloured_floor(100), cameras, {"000001": np.zeros((48, 64, 3), np.uint8)})
    viewer.show(coloured_floor(100), cameras[:2], {})
    assert viewer.points_shown == 100
    viewer.show(Cloud(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.uint8), np.zeros(0, np.float32)), [])
    assert viewer.points_shown == 0
