"""The web viewer in a real browser: it draws, its sliders work, and a leaving browser does no harm."""

from __future__ import annotations

import io
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements/viewer.txt")
pytest.importorskip("selenium", reason="selenium is not installed: pip install -r requirements/test.txt")
import viser
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.actions.action_builder import ActionBuilder
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
SLIDERS = ("hide least confident (%)", "cut above (%)", "point size", "time (s)")
POINTS = 40_000
MAGENTA = (220, 0, 220)  # of the cameras' images
ORANGE = (228, 87, 46)  # of the cameras and the trajectory
LEAST, MOST = (48, 18, 107), (252, 232, 36)  # colours of confidence
GRID = (205, 208, 214)
DESKTOP, PHONE = (1200, 800), (390, 844)
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


def start_browser(size: tuple[int, int] = DESKTOP) -> webdriver.Chrome:
    """Chromium with a window of that size; of a phone's size, it is a phone with a touch screen."""
    options = webdriver.ChromeOptions()
    if size == PHONE:
        metrics = {"width": size[0], "height": size[1], "pixelRatio": 1.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        f"--window-size={size[0]},{size[1]}",
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

    def press(self, text: str) -> None:
        """Click on a button."""
        buttons = self.browser.find_elements(By.CSS_SELECTOR, "button")
        (button,) = [each for each in buttons if each.text == text]
        button.click()

    def tick(self, name: str) -> None:
        """Click on a box."""
        labels = self.browser.find_elements(By.CSS_SELECTOR, "label")
        (label,) = [each for each in labels if each.text == name]
        self.browser.find_element(By.ID, label.get_attribute("for")).click()

    def picture(self) -> np.ndarray:
        """The screenshot (h, w, 3); without a GPU drawing a million points takes a while."""
        for _ in range(20):
            with suppress(TimeoutException):
                png = self.browser.get_screenshot_as_png()
                return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        pytest.fail("the browser gives no screenshot")

    def pixels(self, colours: Iterable = COLOURS) -> list[np.ndarray]:
        """(N, 2) places (row, column) in the screenshot near each of the colours."""
        picture = self.picture()
        return [np.argwhere(np.abs(picture - colour).max(-1) < 30) for colour in colours]

    def counts(self, *colours: tuple[int, int, int]) -> list[int]:
        return [len(places) for places in self.pixels(colours or COLOURS)]

    def says(self, count: int) -> bool:
        fields = self.browser.find_elements(By.CSS_SELECTOR, "input[disabled]")
        return any(field.get_attribute("value") == f"{count:,}" for field in fields)

    def keep(self, name: str) -> None:
        """Leave the screenshot where the other results of tests are."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.picture().astype(np.uint8)).save(ARTEFACTS / f"{name}.png")

    @property
    def client(self) -> viser.ClientHandle:
        """The server's client object of the browser."""
        (client,) = self.viewer._server.get_clients().values()
        return client


@contextmanager
def opened(cloud: Cloud, size: tuple[int, int] = DESKTOP) -> Iterator[Page]:
    """A page that shows a floor of four colours."""
    viewer = WebViewer(port=0, title="walk_map")
    browser = start_browser(size)
    try:
        cameras = [camera(index) for index in range(5)]
        images = {each.name: np.full((48, 64, 3), MAGENTA, np.uint8) for each in cameras}
        viewer.show(cloud, cameras, images, "m")
        browser.get(viewer.address)
        page = Page(viewer, browser)
        wait_for(lambda: bool(browser.find_elements(By.CSS_SELECTOR, "[role=slider]")), "the sliders")
        wait_for(lambda: min(page.counts()) > 300, "points of four colours", 300.0)
        for notice in browser.find_elements(By.CSS_SELECTOR, ".mantine-Notification-closeButton"):
            notice.click()  # about a browser without a GPU
        yield page
    finally:
        browser.quit()
        viewer.stop()


@pytest.fixture(scope="module")
def page():
    with opened(coloured_floor()) as page:
        yield page


@needs_chromium
def test_the_page_draws_points_of_four_colours(page):
    assert page.viewer.points_shown == POINTS
    assert page.says(POINTS)
    assert page.browser.title == "walk_map"
    wait_for(lambda: page.counts(MAGENTA)[0] > 100, "the frusta's images")
    page.keep("viewer")


@needs_chromium
def test_the_confidence_slider_hides_points(page):
    slider = page.slider("hide least confident (%)")
    slider.send_keys(Keys.END)
    expected = round(0.05 * POINTS)
    wait_for(
        lambda: abs(page.viewer.points_shown - expected) <= 0.005 * POINTS, "the server follows the slider"
    )
    wait_for(lambda: page.says(page.viewer.points_shown), "the page shows the number")
    # confidence rises along x: what is left lies where x is largest, which two of the colours cover
    wait_for(lambda: sorted(page.counts())[1] < 60, "two colours go")
    slider.send_keys(Keys.HOME)
    wait_for(lambda: page.viewer.points_shown == POINTS, "all come back")
    wait_for(lambda: min(page.counts()) > 300, "the page shows them")


@needs_chromium
def test_view_from_above_is_a_floor_plan(page):
    before = page.client.camera.position, page.client.camera.look_at
    page.press("view from above")

    def is_plan() -> bool:
        if min(page.counts()) < 300:
            return False
        (near_left, far_left, near_right, far_right) = (places.mean(0) for places in page.pixels())
        upright = all(a[0] < b[0] - 50 for a, b in ((far_left, near_left), (far_right, near_right)))
        square = abs(far_left[1] - near_left[1]) < 20 and abs(far_left[0] - far_right[0]) < 20
        return (
            square
            and upright
            and all(a[1] < b[1] - 50 for a, b in ((near_left, near_right), (far_left, far_right)))
        )

    wait_for(is_plan, "x to the right and y upwards")
    page.press("back")

    def is_back() -> bool:
        camera = page.client.camera
        return np.allclose((camera.position, camera.look_at), before, atol=0.02)

    wait_for(is_back, "the view before")
    wait_for(lambda: not is_plan(), "the page shows it")


@needs_chromium
def test_a_click_on_a_camera_shows_its_view_and_picture(page):
    before = page.client.camera.position
    places = page.pixels([MAGENTA])[0]
    row, column = places[len(places) // 2]
    click = ActionBuilder(page.browser)
    click.pointer_action.move_to_location(int(column), int(row)).click()
    click.perform()
    poses = [camera(index).map_from_camera for index in range(5)]

    def looks_through() -> bool:
        return any(np.allclose(page.client.camera.position, pose[:3, 3], atol=0.02) for pose in poses)

    wait_for(looks_through, "the view of a camera")
    wait_for(lambda: page.counts(MAGENTA)[0] > 0.2 * DESKTOP[0] * DESKTOP[1], "its picture over the map")
    pictures = page.browser.find_elements(By.CSS_SELECTOR, "img")
    assert [each for each in pictures if each.is_displayed()], "its picture in the panel"
    page.keep("viewer_through_camera")
    page.tick("pictures")
    wait_for(lambda: page.counts(MAGENTA)[0] < 10_000, "the map without it; the panel has it still")
    page.tick("pictures")
    wait_for(lambda: page.counts(MAGENTA)[0] > 0.2 * DESKTOP[0] * DESKTOP[1], "the picture comes back")
    drag = ActionBuilder(page.browser)
    drag.pointer_action.move_to_location(400, 300).pointer_down().move_to_location(480, 300).pointer_up()
    drag.perform()
    wait_for(lambda: not page.viewer._views._through, "who moves looks through it no more")
    wait_for(lambda: page.counts(MAGENTA)[0] < 0.2 * DESKTOP[0] * DESKTOP[1], "its picture goes")
    page.press("back")
    wait_for(lambda: np.allclose(page.client.camera.position, before, atol=0.02), "the view before")
    wait_for(lambda: min(page.counts()) > 300, "the page shows it")


@needs_chromium
@pytest.mark.parametrize(
    ("box", "colour", "fewer"),
    [("pictures", MAGENTA, 200), ("cameras", MAGENTA, 200), ("trajectory", ORANGE, 50), ("grid", GRID, 2000)],
)
def test_boxes_hide_and_show(page, box, colour, fewer):
    """fewer: pixels of that colour, about which others have something like it, too."""
    many = page.counts(colour)[0]
    page.tick(box)
    wait_for(lambda: page.counts(colour)[0] <= many - fewer, f"{box} go")
    page.tick(box)
    wait_for(lambda: page.counts(colour)[0] > many - fewer / 2, f"{box} come back")


@needs_chromium
def test_points_are_coloured_by_confidence(page):
    """It rises along x, which goes to the right; yellow is one of the floor's colours, too."""
    page.browser.find_element(By.CSS_SELECTOR, "input[value=picture]").click()

    def option() -> list[WebElement]:
        options = page.browser.find_elements(By.CSS_SELECTOR, "[role=option]")
        return [each for each in options if each.text == "confidence" and each.is_displayed()]

    wait_for(lambda: bool(option()), "the list of colours")
    option()[0].click()
    wait_for(lambda: sorted(page.counts())[2] < 100, "the picture's colours go")
    least, most = page.pixels([LEAST, MOST])
    assert min(len(least), len(most)) > 50
    assert least[:, 1].mean() < most[:, 1].mean() - 50
    page.viewer._controls.colouring.value = "picture"
    wait_for(lambda: min(page.counts()) > 300, "they come back")


@needs_chromium
def test_height_filter_and_colours_work_far_from_the_origin():
    """Metres of a map projection; the left half of the floor lies a metre higher."""
    floor = coloured_floor()
    floor.points[floor.points[:, 0] < 0, 2] += 1
    far = Cloud(floor.points + np.array([4e4, 5e5, 300], np.float32), floor.colors, floor.confidence)
    with opened(far) as page:
        page.slider("cut above (%)").send_keys(Keys.ARROW_LEFT * 30)
        left = int((floor.points[:, 2] < 0.5).sum())
        wait_for(lambda: page.viewer.points_shown == left, "half of the points are cut")
        wait_for(lambda: max(page.counts()[:2]) < 100, "red and green go")
        assert min(page.counts()[2:]) > 300


@needs_chromium
def test_a_viser_that_draws_points_differently_is_reported(page):
    shader = "uniform float point_ball_norm; void main() { gl_PointSize = 1.0; }"
    page.browser.execute_script(
        "const gl = document.createElement('canvas').getContext('webgl2');"
        "gl.shaderSource(gl.createShader(gl.VERTEX_SHADER), arguments[0])",
        shader,
    )
    notice = page.browser.find_element(By.XPATH, "//p[contains(text(), 'this version of viser')]")
    assert notice.is_displayed()
    page.browser.execute_script("arguments[0].remove()", notice)


@needs_chromium
def test_play_goes_from_the_start_to_the_end(page):
    values: list[float] = []
    counts: list[int] = []
    page.viewer._controls.time.on_update(lambda event: values.append(event.target.value))
    page.press("play")
    wait_for(lambda: bool(values), "it starts")
    while not (values[-1] == 4.0 and page.viewer._playing is None):
        counts.append(page.viewer.points_shown)
        time.sleep(0.2)
    assert values == sorted(values)
    assert (values[0], len(values)) == (0.0, 41), "ticks of 0.1 s"
    assert counts[0] < 0.7 * POINTS
    wait_for(lambda: page.says(POINTS), "the page shows all")
    assert [each for each in page.browser.find_elements(By.CSS_SELECTOR, "button") if each.text == "play"]


@needs_chromium
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_million_points_are_drawn_and_the_panel_leaves_them_room(size):
    with opened(coloured_floor(1_000_000), size) as page:
        assert page.viewer.points_shown == 1_000_000
        name = "phone" if size == PHONE else "desktop"
        page.keep(f"viewer_million_{name}")
        sliders = page.browser.find_elements(By.CSS_SELECTOR, "[role=slider]")
        height = page.browser.execute_script("return window.innerHeight")
        inside = [each for each in sliders if 0 < each.location["y"] < height - 5]
        if size == DESKTOP:
            assert len(inside) == 4
            return
        assert not inside, "the panel is closed"
        page.browser.find_element(By.CSS_SELECTOR, '[style*="height: 3.5em"]').click()
        wait_for(lambda: sliders[0].location["y"] < height - 50, "a tap opens it")
        page.keep("viewer_phone_panel")


@needs_chromium
def test_the_time_slider_shows_the_map_as_it_was(page):
    """The first camera sees the ground before it, later ones the rest."""
    slider = page.slider("time (s)")
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


def test_only_this_machine_has_access_by_default(viewer):
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


def test_an_address_of_another_machine_gives_a_one_line_error():
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1"):
        WebViewer("192.0.2.1", 0)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_does_not_exist_gives_a_one_line_error(port):
    with pytest.raises(UserError, match=f"port {port} does not exist"):
        WebViewer(port=port)
