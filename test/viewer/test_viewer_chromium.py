"""The web viewer in a real browser: it draws, its sliders act, and a browser that leaves harms nothing."""

from __future__ import annotations

import io
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements/viewer.txt")
pytest.importorskip("selenium", reason="selenium is not installed: pip install -r requirements/test.txt")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from fast3r_ros.errors import UserError
from fast3r_ros.io.cameras import CameraRecord
from fast3r_ros.mapping.data import Cloud
from fast3r_ros.viewer.web import WebViewer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: apt install chromium chromium-driver"
)
ARTEFACTS = Path(__file__).resolve().parents[2] / "build" / "artefacts"
SLIDERS = ("hide least confident (%)", "cut above (%)", "point size", "time (%)")
POINTS = 40_000
MAGENTA = (220, 0, 220)  # of the cameras' images
COLOURS = np.array([[220, 40, 40], [40, 200, 60], [40, 60, 220], [230, 200, 40]], np.uint8)


def coloured_floor(count: int = POINTS) -> Cloud:
    """A floor of four coloured quarters; confidence rises along x."""
    generator = np.random.default_rng(0)
    points = generator.uniform(-2, 2, (count, 3)).astype(np.float32) * [1, 1, 0.01]
    points = points[np.argsort(points[:, 0])]
    quarter = (points[:, 0] > 0) * 2 + (points[:, 1] > 0)
    confidence = (1 + points[:, 0] + 2).astype(np.float32)
    return Cloud(points.astype(np.float32), COLOURS[quarter.astype(int)], confidence)


def camera(index: int) -> CameraRecord:
    """Looks along x and down on the floor; goes from x = -2 on, half a metre with each index."""
    pose = np.eye(4)
    pose[:3, :3] = np.array([[0, -0.6, 0.8], [-1, 0, 0], [0, -0.8, -0.6]])
    pose[:3, 3] = [-2 + 0.5 * index, 0, 0.6]
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


def start_browser() -> webdriver.Chrome:
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
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


class Page(NamedTuple):
    """The viewer's page with a floor of four colours and cameras above it whose images are magenta."""

    viewer: WebViewer
    browser: webdriver.Chrome

    def slider(self, name: str) -> WebElement:
        names = [label.text for label in self.browser.find_elements(By.CSS_SELECTOR, "label")]
        sliders = self.browser.find_elements(By.CSS_SELECTOR, "[role=slider]")
        order = [each for each in names if each in SLIDERS]
        assert order == list(SLIDERS), names
        return sliders[order.index(name)]

    def pixels(self, colours: Iterable = COLOURS) -> list[np.ndarray]:
        """(N, 2) places (row, column) in the screenshot near each of the colours."""
        png = self.browser.get_screenshot_as_png()
        picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        return [np.argwhere(np.abs(picture - colour).max(-1) < 30) for colour in colours]

    def counts(self) -> list[int]:
        return [len(places) for places in self.pixels()]

    def says(self, count: int) -> bool:
        fields = self.browser.find_elements(By.CSS_SELECTOR, "input[disabled]")
        return any(field.get_attribute("value") == f"{count:,}" for field in fields)


@pytest.fixture(scope="module")
def page():
    viewer = WebViewer(port=0)
    browser = start_browser()
    try:
        cameras = [camera(index) for index in range(5)]
        images = {each.name: np.full((48, 64, 3), MAGENTA, np.uint8) for each in cameras}
        viewer.show(coloured_floor(), cameras, images)
        browser.get(viewer.address)
        page = Page(viewer, browser)
        wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "[role=slider]"), "the sliders")
        wait_for(lambda: min(page.counts()) > 300, "points of four colours")
        yield page
    finally:
        browser.quit()
        viewer.stop()


@needs_chromium
def test_the_page_draws_points_of_four_colours(page):
    assert page.viewer.points_shown == POINTS
    assert page.says(POINTS)
    wait_for(lambda: len(page.pixels([MAGENTA])[0]) > 100, "the frusta's images")
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    assert page.browser.save_screenshot(str(ARTEFACTS / "viewer.png"))


@needs_chromium
def test_the_confidence_slider_hides_points(page):
    slider = page.slider("hide least confident (%)")
    slider.send_keys(Keys.END)
    expected = round(0.05 * POINTS)
    wait_for(lambda: abs(page.viewer.points_shown - expected) <= 1, "the server follows the slider")
    wait_for(lambda: page.says(page.viewer.points_shown), "the page shows the number")
    # confidence rises along x: what is left lies where x is largest, which two of the colours cover
    wait_for(lambda: sorted(page.counts())[1] < 60, "two colours go")
    slider.send_keys(Keys.HOME)
    wait_for(lambda: page.viewer.points_shown == POINTS, "all come back")
    wait_for(lambda: min(page.counts()) > 300, "the page shows them")


@needs_chromium
def test_view_from_above_is_a_floor_plan(page):
    (button,) = [b for b in page.browser.find_elements(By.CSS_SELECTOR, "button") if "above" in b.text]
    button.click()

    def is_plan() -> bool:
        if min(page.counts()) < 300:
            return False
        (near_left, far_left, near_right, far_right) = (places.mean(0) for places in page.pixels())
        upright = all(a[0] < b[0] - 50 for a, b in ((far_left, near_left), (far_right, near_right)))
        return upright and all(a[1] < b[1] - 50 for a, b in ((near_left, near_right), (far_left, far_right)))

    wait_for(is_plan, "x to the right and y upwards")


@needs_chromium
def test_the_time_slider_shows_the_map_as_it_was(page):
    """The first camera sees the ground before it, later ones the rest."""
    slider = page.slider("time (%)")
    slider.send_keys(Keys.HOME)
    wait_for(lambda: page.viewer.points_shown < 0.7 * POINTS, "what later cameras saw is hidden")
    early = page.viewer.points_shown
    assert early > 0
    wait_for(lambda: page.says(early), "the page shows the number")
    slider.send_keys(Keys.END)
    wait_for(lambda: page.viewer.points_shown == POINTS, "all come back")


@needs_chromium
def test_a_browser_that_leaves_mid_stream_harms_nothing(viewer):
    browser = start_browser()
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
        browser.quit()  # while the stream goes on
        time.sleep(1.0)
        assert thread.is_alive()
        assert not errors
    finally:
        stop.set()
        thread.join(10)
        browser.quit()
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


def test_an_address_of_another_machine_is_one_line():
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1"):
        WebViewer("192.0.2.1", 0)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_does_not_exist_is_one_line(port):
    with pytest.raises(UserError, match=f"port {port} does not exist"):
        WebViewer(port=port)
