"""The web viewer in a real browser: it draws, its sliders work, and a leaving browser does no harm."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

pytest.importorskip("viser", reason="viser is not installed: pip install -r requirements/viewer.txt")
pytest.importorskip("selenium", reason="selenium is not installed: pip install -r requirements/test.txt")
from browser import DESKTOP, GRID, LEAST, MAGENTA, MOST, ORANGE, PHONE, needs_chromium, opened, start_browser
from floor import POINTS, camera, coloured_floor
from patience import HANG_SECONDS, wait_until
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from fast3r_ros.mapping.data import Cloud
from fast3r_ros.viewer.web import WebViewer


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait for the page; each look may take a screenshot."""
    wait_until(condition, what, pause=0.1)


@pytest.fixture
def viewer():
    viewer = WebViewer(port=0)
    yield viewer
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

    def played() -> bool:
        counts.append(page.viewer.points_shown)
        return values[-1] == 4.0 and page.viewer._playing is None

    wait_for(played, "its end")
    assert values == sorted(values)
    assert (values[0], len(values)) == (0.0, 41), "ticks of 0.1 s"
    assert counts[0] < 0.7 * POINTS
    wait_for(lambda: page.says(POINTS), "the page shows all")
    assert [each for each in page.browser.find_elements(By.CSS_SELECTOR, "button") if each.text == "play"]


@needs_chromium
@pytest.mark.slow
def test_a_million_points_are_drawn_beside_the_open_panel():
    with opened(coloured_floor(1_000_000)) as page:
        assert page.viewer.points_shown == 1_000_000
        page.keep("viewer_million_desktop")
        assert len(in_sight(page)) == 4


@needs_chromium
@pytest.mark.slow
def test_on_a_phone_the_panel_is_closed_until_a_tap():
    with opened(coloured_floor(1_000_000), PHONE) as page:
        page.keep("viewer_phone")
        assert not in_sight(page)
        page.browser.find_element(By.CSS_SELECTOR, '[style*="height: 3.5em"]').click()
        wait_for(lambda: len(in_sight(page)) > 0, "a tap opens it")
        page.keep("viewer_phone_panel")


def in_sight(page) -> list[WebElement]:
    """The sliders inside the window."""
    height = page.browser.execute_script("return window.innerHeight")
    sliders = page.browser.find_elements(By.CSS_SELECTOR, "[role=slider]")
    return [each for each in sliders if 0 < each.location["y"] < height - 5]


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
    shown: list[int] = []

    def stream() -> None:
        try:
            while not stop.wait(0.05):
                viewer.show(cloud, [camera(i) for i in range(len(shown) % 20 + 1)], {})
                shown.append(1)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        browser.get(viewer.address)
        wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, "[role=slider]"), "the page")
        browser.quit()  # while the stream goes on
        count = len(shown)
        wait_until(lambda: len(shown) > count + 20 or errors, "more maps")
        assert not errors
    finally:
        stop.set()
        thread.join(HANG_SECONDS)
        browser.quit()
    viewer.show(cloud, [], {})
    assert viewer.points_shown == 5000
