"""`pip install .` gives the ROS-free core and the `fast3r` command, where there is no ROS."""

import os
import shutil
import subprocess
import sys
from email import message_from_string
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_ROS = ROOT / "test" / "without_ros"
SOURCES = ["fast3r_ros", "setup.py", "pyproject.toml", "README.md", "LICENSE"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs Python code with the package installed into a separate folder, away from the sources."""
    target = tmp_path_factory.mktemp("installed")
    environ = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    sources = tmp_path_factory.mktemp("sources") / "fast3r_ros"
    sources.mkdir()  # a build writes beside the sources; the repository stays clean
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources / name)
    subprocess.run([*command, "--target", target, sources], env=environ, check=True, cwd=sources)
    environ["PYTHONPATH"] = f"{target}{os.pathsep}{WITHOUT_ROS}"

    def run_code(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], env=environ, cwd=target, capture_output=True, text=True, check=False
        )

    run_code.target = target
    return run_code


def test_the_command_is_installed_and_helps_quickly(run):
    result = run(run.target / "bin" / "fast3r", "--help")
    assert result.returncode == 0, result.stderr
    assert "reconstruct" in result.stdout


def test_importing_the_package_imports_neither_torch_nor_ros(run):
    code = (
        "import sys, fast3r_ros as f; print(f.__file__); print({'torch', 'rclpy', 'cv2'} & set(sys.modules))"
    )
    result = run("-c", code)
    file, modules = result.stdout.split()
    assert file.startswith(str(run.target))
    assert modules == "set()"


def test_there_is_no_ros_and_the_core_imports(run):
    code = """
import importlib, pkgutil, fast3r_ros
for name in ("rclpy", "std_msgs"):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        print("no", name)
for module in pkgutil.walk_packages(fast3r_ros.__path__, "fast3r_ros."):
    if not module.name.startswith("fast3r_ros.ros") and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""
    result = run("-c", code)
    assert result.returncode == 0, result.stderr
    assert {"no rclpy", "no std_msgs", "fast3r_ros.mapping.mapper"} <= set(result.stdout.splitlines())


def test_package_data_is_installed(run):
    assert (run.target / "fast3r_ros" / "py.typed").is_file()
    assert (run.target / "fast3r_ros" / "viewer" / "page.js").is_file()
    assert (run.target / "fast3r_ros" / "weights" / "demo" / "config.json").is_file()


def test_the_package_names_its_authors_and_purpose(run):
    (text,) = run.target.glob("fast3r_ros-*.dist-info/METADATA")
    about = message_from_string(text.read_text(encoding="utf-8"))
    for field in ("Author", "Summary", "License-Expression", "Keywords", "Project-URL", "Classifier"):
        assert about[field], field
    assert "example.com" not in str(about.get_all("Project-URL"))
    assert about["Description-Content-Type"] == "text/markdown"


def test_the_long_description_renders(run):
    markdown = pytest.importorskip(
        "readme_renderer.markdown", reason="readme_renderer is not installed: requirements/test.txt"
    )
    (text,) = run.target.glob("fast3r_ros-*.dist-info/METADATA")
    page = markdown.render(message_from_string(text.read_text(encoding="utf-8")).get_payload())
    assert page, "PyPI would show the plain text"
    assert "<h1" in page
    assert "<table" in page
