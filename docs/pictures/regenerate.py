"""Make the documentation's pictures again: the built-in walk, its map in the viewer, errors by views given.

The viewer's picture needs chromium, chromedriver and the extra `viewer`.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

PICTURES = Path(__file__).resolve().parent
ROOT = PICTURES.parents[1]
sys.path.insert(0, str(ROOT))  # this tree, wherever the script is started from
MAPS = (0.141, 0.586)  # rows of the preview with the map from above and from the side
WIDTH, COLOURS = 1200, 256  # of a picture; a palette keeps the file small
SECONDS_TO_DRAW = 15  # without a GPU the browser is slow


def main() -> None:
    """Reconstruct and evaluate into a temporary folder; keep the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="model that maps the walk (default: %(default)s)")
    parser.add_argument("--source", default="synthetic", help="what is mapped (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=PICTURES, help="folder of the pictures")
    parser.add_argument("--scenes", default="50", help="that errors by views are of (default: %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run("reconstruct", arguments.source, "--model", arguments.model, "--output", folder)
        preview = (Path(folder) / "preview.png").read_bytes()
        save(preview, arguments.output / "demo.png")
        save(preview, arguments.output / "map.png", MAPS)
        if shutil.which("chromium") and shutil.which("chromedriver"):
            save(screenshot(folder), arguments.output / "viewer.png")
        else:
            print("viewer.png is left as it is: install chromium and chromedriver to make it again")
        options = f"--split easy --views 2 4 8 --same-frames --scenes {arguments.scenes}"
        tables = ("--tables", "pose", "reconstruction")
        run("evaluate", *options.split(), *tables, "--model", arguments.model, "--output", folder)
        save((Path(folder) / "more_views.png").read_bytes(), arguments.output / "more_views.png")


def run(*command: str) -> None:
    """One command of the package, from this tree."""
    subprocess.run([sys.executable, "-m", "fast3r_ros", *command], cwd=ROOT, check=True)


def save(png: bytes, path: Path, rows: tuple[float, float] = (0.0, 1.0)) -> None:
    """Keep a picture, smaller; rows: from where to where, in shares of its height."""
    with Image.open(io.BytesIO(png)) as picture:
        part = (0, round(rows[0] * picture.height), picture.width, round(rows[1] * picture.height))
        size = (WIDTH, round((part[3] - part[1]) * WIDTH / picture.width))
        picture.convert("RGB").crop(part).resize(size).quantize(COLOURS).save(path, optimize=True)


def screenshot(results: str) -> bytes:
    """The viewer with a folder of results, as a PNG."""
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    from fast3r_ros.io.results import read_results
    from fast3r_ros.viewer.web import WebViewer

    content = read_results(results)
    viewer = WebViewer(port=0)
    viewer.show(content.cloud, content.cameras, content.read_images())
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    drawing = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--window-size=1200,750")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *drawing):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get(viewer.address)
        time.sleep(SECONDS_TO_DRAW)
        for notice in browser.find_elements(By.CSS_SELECTOR, ".mantine-Notification-closeButton"):
            notice.click()
        cut = browser.find_elements(By.CSS_SELECTOR, "[role=slider]")[1]
        cut.send_keys(Keys.ARROW_LEFT * 15)  # below the ceiling
        time.sleep(SECONDS_TO_DRAW)
        return browser.get_screenshot_as_png()
    finally:
        browser.quit()
        viewer.stop()


if __name__ == "__main__":
    main()
