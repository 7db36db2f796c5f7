"""The documentation builds without a warning, its links are valid, and its pictures can be regenerated."""

from __future__ import annotations

import ast
import html
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS
from PIL import Image
from shown_commands import PAGES, ROOT

import fast3r_ros
from fast3r_ros.demo_model import DEMO_DIRECTORY
from fast3r_ros.ros.node_config import NodeConfig
from fast3r_ros.settings import parameter_fields


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built into a folder of its own."""
    pytest.importorskip("zensical", reason="zensical is not installed: pip install -r requirements/test.txt")
    sources = tmp_path_factory.mktemp("sources")
    shutil.copy(ROOT / "mkdocs.yml", sources)
    shutil.copytree(ROOT / "docs", sources / "docs")
    shutil.copytree(ROOT / "config", sources / "config")  # whose parameters a page shows
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # the Python reference is read from the sources
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=sources,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return sources / "build" / "site"


@pytest.mark.slow
def test_documentation_builds_without_a_warning(site):
    assert (site / "index.html").is_file()
    assert len(list(site.glob("*/index.html"))) == len(list((ROOT / "docs").glob("*.md"))) - 1


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site):
    page = (site / "reference" / "index.html").read_text(encoding="utf-8")
    for name in set(fast3r_ros.__all__) - {"__version__"}:
        assert re.search(rf'id="fast3r_ros(\.\w+)*\.{name}"', page), name
    for text in ("world_from_camera", "from_pretrained", "max_views", "not_placed"):
        assert text in page, text


@pytest.mark.slow
def test_the_page_of_parameters_shows_the_file(site):
    page = (site / "parameters" / "index.html").read_text(encoding="utf-8")
    shown = html.unescape(re.sub(r"<[^>]+>", "", page))  # names in angle brackets are escaped
    assert (ROOT / "config" / "mapping.yaml").read_text(encoding="utf-8") in shown


def test_no_page_and_no_table_is_cut_on_a_laptop(site):
    """1366 pixels wide, in Chromium; what is wider than its frame would have to be scrolled to be seen."""
    pytest.importorskip("selenium", reason="selenium is not installed: pip install -r requirements/test.txt")
    from selenium import webdriver

    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no browser: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-background-networking"):
        options.add_argument(argument)
    options.add_argument("--window-size=1366,768")
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    parts = "html, .md-typeset__scrollwrap, .md-content table, pre > code"
    wider = f"return [...document.querySelectorAll('{parts}')]"
    wider += ".filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.innerText)"
    try:
        cut, tables = {}, 0
        for page in sorted(site.glob("**/index.html")):
            browser.get(page.as_uri())
            tables += browser.execute_script("return document.querySelectorAll('.md-content table').length")
            if found := browser.execute_script(wider):
                cut[page.parent.name] = [text[:60] for text in found]
    finally:
        browser.quit()
    assert tables > 20
    assert not cut


@pytest.mark.slow
def test_script_makes_the_pictures(tmp_path, child_environment):
    """Without a browser, which is slow; test/viewer has one."""
    if not (DEMO_DIRECTORY / "config.json").is_file():
        pytest.skip("the demo model is not in this tree: fast3r_ros/weights/demo")
    script = [sys.executable, ROOT / "docs" / "pictures" / "regenerate.py", "--source", "synthetic:2"]
    environment = {**child_environment, "PATH": str(tmp_path)}
    done = subprocess.run(
        [*script, "--scenes", "1", "--output", tmp_path],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert "viewer.png is left as it is" in done.stdout, done.stderr
    for name in ("demo.png", "map.png", "more_views.png"):
        with Image.open(tmp_path / name) as picture, Image.open(ROOT / "docs" / "pictures" / name) as shown:
            assert picture.width == shown.width


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)", text) if "://" not in target]
    assert targets
    for target in targets:
        assert (ROOT / target).is_file(), target


def messages_of_the_sources() -> str:
    """Every text of our Python files, a line each, with … for what is put in; and the shell scripts."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "scripts").glob("*.sh")]
    for folder in ("fast3r_ros", "launch", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr | ast.Constant):
                    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
                    pieces = [f"{part.value}" if isinstance(part, ast.Constant) else "…" for part in parts]
                    texts.append("".join(pieces))
    return "\n".join(texts)


def test_messages_of_the_troubleshooting_page_are_those_of_the_sources():
    """What a person searches the page for is what is printed; … stands for names and numbers."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| ([^|]+) \|", page, re.M)
    shown = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell) if " " in text]
    assert len(shown) > 20
    sources = messages_of_the_sources()
    parts = [(text, part.strip(" :()")) for text in shown for part in text.split("…")]
    assert not [text for text, part in parts if part not in sources]


def test_settings_of_the_pages_exist():
    """`window.size` and the like, in the code of every page; files are called map.ply, too."""
    settings = {name for name, _, _ in parameter_fields(NodeConfig())}
    sections = {name.split(".")[0] for name in settings if "." in name}
    files = {"glb", "json", "pcd", "ply", "py"}
    named = [
        (page.name, name)
        for page in PAGES
        for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
        for name in re.findall(r"\b[a-z]+\.[a-z_]+\b", code)
        if name.split(".")[0] in sections and name.split(".")[1] not in files
    ]
    assert len(named) > 30
    assert not [(page, name) for page, name in named if name not in settings]
