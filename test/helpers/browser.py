"""The web viewer's page in a headless Chromium, with a floor of four colours and cameras above it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import viser
from floor import COLOURS, camera
from patience import wait_until
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from fast3r_ros.mapping.data import Cloud
from fast3r_ros.viewer.web import WebViewer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: apt install chromium chromium-driver"
)
ARTEFACTS = Path(__file__).resolve().parents[2] / "build" / "artefacts"
SLIDERS = ("hide least confident (%)", "cut above (%)", "point size", "time (s)")
MAGENTA = (220, 0, 220)  # of the cameras' images
ORANGE = (228, 87, 46)  # of the cameras and the trajectory
LEAST, MOST = (48, 18, 107), (252, 232, 36)  # colours of confidence
GRID = (205, 208, 214)
DESKTOP, PHONE = (1200, 800), (390, 844)

# Without a GPU, drawing a million points as often as possible would keep every core busy.
FEW_PICTURES = """
    const draw = window.requestAnimationFrame.bind(window);
    window.requestAnimationFrame = (callback) => setTimeout(() => draw(callback), PAUSE);
    window.cancelAnimationFrame = (id) => clearTimeout(id);
"""


def start_browser(size: tuple[int, int] = DESKTOP, pause_ms: int = 100) -> webdriver.Chrome:
    """Chromium with a window of that size; of a phone's size, it is a phone with a touch screen.

    pause_ms: at least so long passes between two pictures that the page draws.
    """
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
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": FEW_PICTURES.replace("PAUSE", str(pause_ms))}
    )
    return browser


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
    browser = start_browser(size, pause_ms=max(100, len(cloud.points) // 1000))
    try:
        cameras = [camera(index) for index in range(5)]
        images = {each.name: np.full((48, 64, 3), MAGENTA, np.uint8) for each in cameras}
        viewer.show(cloud, cameras, images, "m")
        browser.get(viewer.address)
        page = Page(viewer, browser)
        wait_until(lambda: bool(browser.find_elements(By.CSS_SELECTOR, "[role=slider]")), "the sliders")
        wait_until(lambda: min(page.counts()) > 300, "points of four colours", pause=1e-6 * len(cloud.points))
        for notice in browser.find_elements(By.CSS_SELECTOR, ".mantine-Notification-closeButton"):
            notice.click()  # about a browser without a GPU
        yield page
    finally:
        browser.quit()
        viewer.stop()
