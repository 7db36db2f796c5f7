"""Sets up everything that the package needs: virtual environment, pinned dependencies, colcon build.

Usage: setup_environment.py [--distro jazzy|kilted] [--for demo|test|messages] [--model NAME]
                            [--print-suffix]

Without a ROS 2 distribution, ROS 2 itself comes from PyPI (Jazzy by default, Kilted on request).  If a
distribution is sourced (ROS_DISTRO is set), it is used and no ROS wheels are installed.  A step is skipped if
its inputs have not changed since it last succeeded.  Uses only the standard library.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "requirements" / "constraints.txt"
WHEEL_DISTROS = ("jazzy", "kilted")  # the first is the default
OLDEST_DISTRO = "jazzy"
REQUIREMENTS = {
    "demo": ("build", "core"),
    "test": ("build", "core", "train", "viewer", "test", "readers"),
    "messages": ("build",),  # only builds the messages and talks over DDS; no PyTorch
}
# Networks (the part of a model's name before the colon) whose packages are installed without their
# dependencies, from requirements/NAME.txt; and the newest supported Python.
NETWORKS = {"da3": (3, 12)}
# The index of PyTorch besides PyPI.  Its build without CUDA saves several gigabytes, and is chosen
# automatically if no NVIDIA driver is loaded.
TORCH_INDEX = "TORCH_INDEX"
TORCH_WITHOUT_CUDA = "https://download.pytorch.org/whl/cpu"
# Python compiles what is imported, at the first import; pip would spend half of its time on the rest, too.
PIP_OPTIONS = ("--disable-pip-version-check", "install", "--no-compile")
SECONDS_PER_LINE = 20.0  # between lines of progress if the output is not a terminal
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class SetupError(Exception):
    """Something on this machine is missing; the message is one line with advice."""


@dataclass(frozen=True)
class Environment:
    """The environment of one ROS 2 distribution.

    suffix: "" (Jazzy wheels), "-kilted" (Kilted wheels) or "-NAME-system" (a sourced distribution); it ends
    the names of the folders .venv, build, install and log.
    """

    distro: str
    sourced: bool
    suffix: str

    def folder(self, name: str) -> Path:
        """The folder `name` of this environment, in the root of the repository."""
        return ROOT / f"{name}{self.suffix}"

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder(".venv") / "bin" / "python"


def choose_environment(asked: str | None) -> Environment:
    """Choose between the sourced ROS 2 distribution and the wheels; SetupError when it cannot be used."""
    sourced = os.environ.get("ROS_DISTRO", "")
    if not sourced:
        distro = asked or WHEEL_DISTROS[0]
        if distro not in WHEEL_DISTROS:
            raise SetupError(f"DISTRO={distro} is not available from PyPI; use {' or '.join(WHEEL_DISTROS)}")
        return Environment(distro, False, "" if distro == WHEEL_DISTROS[0] else f"-{distro}")
    if os.environ.get("ROS_VERSION", "2") != "2" or sourced < OLDEST_DISTRO:
        raise SetupError(
            f"the sourced ROS distribution {sourced} is too old: use Jazzy or newer, or a shell without ROS"
        )
    if asked and asked != sourced:
        raise SetupError(f"DISTRO={asked} was requested but {sourced} is sourced: use a shell without ROS")
    return Environment(sourced, True, f"-{sourced}-system")


def check_machine(environment: Environment) -> None:
    """SetupError with one line that names everything missing on this machine."""
    odd = re.search(r"[^\w./+@%=,~-]", str(ROOT))
    if odd:  # CMake, colcon and the first line of scripts would fail on it minutes later
        raise SetupError(f"the folder {str(ROOT)!r} has {odd[0]!r} in its name: move it to a path without")
    if sys.version_info < (3, 11):  # noqa: UP036 - this script runs before the environment exists
        raise SetupError(f"Python {platform.python_version()} is too old: Python 3.11 or newer is needed")
    packages = {"g++": "g++", "make": "make", "bash": "bash"}
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        missing.append("python3-venv")
    if not any(Path(include, "Python.h").exists() for include in include_folders(sys.executable)):
        missing.append("python3-dev")
    if missing:
        raise SetupError(f"missing on this machine: {', '.join(missing)} (apt install {' '.join(missing)})")
    if not environment.sourced and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise SetupError(
            f"ROS 2 from PyPI exists for Linux on x86_64 only, not for {sys.platform} {platform.machine()}: "
            "install ROS 2 Jazzy or newer, source its setup.bash and run this again"
        )


def include_folders(python: str | Path) -> list[str]:
    """The folders that may hold Python.h of an interpreter."""
    code = "import sysconfig; print(sysconfig.get_path('include')); print(sysconfig.get_path('platinclude'))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.split()


class Log:
    """Prints one line per step and writes the output of the steps' programs to a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.path.write_text("")

    def run(self, title: str, command: Sequence[str | Path], environ: dict[str, str] | None = None) -> None:
        """Run a command and show its duration; SetupError with the end of its output when it fails."""
        with self.running(title, command, environ):
            pass

    @contextmanager
    def running(
        self, title: str, command: Sequence[str | Path], environ: dict[str, str] | None = None
    ) -> Iterator[None]:
        """Like `run`, while the block does something else; an error in the block ends the command."""
        start = time.monotonic()
        with self.path.open("a") as file:
            file.write(f"\n$ {' '.join(map(str, command))}\n")
            file.flush()
            process = subprocess.Popen(
                command, stdout=file, stderr=file, cwd=ROOT, env=environ, preexec_fn=_die_with_parent
            )
        try:
            yield
            status = self._wait(process, title, start)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if status != 0:
            tail = "\n".join(self.path.read_text(errors="replace").splitlines()[-25:])
            print(f"\n{tail}", file=sys.stderr)
            raise SetupError(f"{title}: failed; the whole output is in {self.path.relative_to(ROOT)}")
        print(f"{_rewind()}{title}: {time.monotonic() - start:.0f} s", flush=True)

    @staticmethod
    def _wait(process: subprocess.Popen[bytes], title: str, start: float) -> int:
        terminal = sys.stdout.isatty()
        while True:
            try:
                return process.wait(timeout=1.0 if terminal else SECONDS_PER_LINE)
            except subprocess.TimeoutExpired:
                end = "" if terminal else "\n"  # in a pipe or a log, an occasional line
                print(f"{_rewind()}{title} … {time.monotonic() - start:.0f} s", end=end, flush=True)


def _rewind() -> str:
    return "\r\033[K" if sys.stdout.isatty() else ""


def _die_with_parent() -> None:
    """In the child: its own process group, ended by us on Ctrl-C, and by the kernel when we are killed."""
    os.setpgid(0, 0)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def create_venv(environment: Environment, log: Log) -> None:
    """Create the virtual environment unless a working one of this Python version exists."""
    folder = environment.folder(".venv")
    if was_moved(folder) or holds_other_ros(folder, environment):
        if folder.is_symlink():  # another clone's: must not be cleared
            raise SetupError(f"{folder} is of another ROS 2 or place: remove this link, or name its DISTRO=")
        for name in ("build", "install"):
            shutil.rmtree(environment.folder(name), ignore_errors=True)
    elif (folder / "bin" / "pip").exists():
        code = "import sys; print(sys.version_info[:2])"
        found = subprocess.run([environment.python, "-c", code], capture_output=True, text=True, check=False)
        if found.stdout.strip() == str(sys.version_info[:2]):
            return
    options = ["--system-site-packages"] if environment.sourced else []
    command: list[str | Path] = [sys.executable, "-m", "venv", "--clear", *options, folder]
    log.run(f"Creating {folder.name} (Python {platform.python_version()})", command)


def was_moved(venv: Path) -> bool:
    """Whether a virtual environment was created under another path, which its scripts still contain."""
    activate = venv / "bin" / "activate"
    return activate.exists() and str(venv.resolve()) not in activate.read_text(errors="replace")


def holds_other_ros(venv: Path, environment: Environment) -> bool:
    """Whether it contains another distribution's wheels, from when Kilted was the default."""
    stamps = (venv / "installed-requirements").glob("ros-*")
    return any(not stamp.name.startswith(f"ros-{environment.distro}-") for stamp in stamps)


def install_requirements(environment: Environment, purpose: str, log: Log) -> None:
    """Install the requirement files of a purpose that have changed since their last installation."""
    names = [*REQUIREMENTS[purpose], *([] if environment.sourced else [f"ros-{environment.distro}"])]
    stamps = environment.folder(".venv") / "installed-requirements"
    stamps.mkdir(exist_ok=True)
    wanted: dict[Path, Path] = {}
    for name in names:
        path = ROOT / "requirements" / f"{name}.txt"
        content = path.read_bytes() + CONSTRAINTS.read_bytes()
        stamp = stamps / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
        if not stamp.exists():
            wanted[stamp] = path
    if not wanted:
        return
    pip: list[str | Path] = [environment.python, "-m", "pip", *PIP_OPTIONS]
    if any(path.stem == "core" for path in wanted.values()):
        index = torch_index()
        size = "about 200 MB" if index == TORCH_WITHOUT_CUDA else "up to 3 GB with CUDA"
        print(f"Downloading PyTorch ({size}) and about 500 MB more", flush=True)
        options = ["--extra-index-url", index] if index else []
        log.run("Installing PyTorch", [*pip, "--no-deps", *options, pinned_torch()])
    if environment.sourced:
        arguments = system_package_arguments(environment, list(wanted.values()))
    else:
        constraints: list[str | Path] = ["-c", CONSTRAINTS, "-c", ROOT / "requirements" / "core.txt"]
        arguments = [*constraints, *(word for path in wanted.values() for word in ("-r", path))]
    log.run(f"Installing the requirements: {', '.join(p.stem for p in wanted.values())}", [*pip, *arguments])
    if not environment.sourced:
        patch_cmake_files(environment)
    for stamp in wanted:
        stamp.touch()


def install_networks(environment: Environment, purpose: str, model: str, log: Log) -> None:
    """Install the packages of the network in a model's name; for tests those of all networks."""
    name, colon, _ = model.partition(":")
    names = [name] if colon and name in NETWORKS else []
    if purpose == "test":  # with a Python that is too new, the rest is still tested
        names = [name for name, newest in NETWORKS.items() if sys.version_info[:2] <= newest]
    stamps = environment.folder(".venv") / "installed-requirements"
    for name in names:
        path = ROOT / "requirements" / f"{name}.txt"
        stamp = stamps / f"{name}-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
        if not stamp.exists():
            pip = [environment.python, "-m", "pip", *PIP_OPTIONS, "--no-deps"]
            log.run(f"Installing what {name} needs", [*pip, "-r", path])
            stamp.touch()


def torch_index() -> str:
    """The index of PyTorch besides PyPI: $TORCH_INDEX, the builds without CUDA, or "" for PyPI alone."""
    if os.environ.get(TORCH_INDEX):
        return os.environ[TORCH_INDEX]
    if NVIDIA_DRIVER.exists() or platform.machine() != "x86_64":  # on PyPI only x86_64 includes CUDA
        return ""
    try:  # pip would wait for minutes for an unreachable index
        urllib.request.urlopen(f"{TORCH_WITHOUT_CUDA}/torch/", timeout=10).close()
    except (OSError, ValueError):
        return ""
    print(f"No NVIDIA driver: PyTorch without CUDA ({TORCH_INDEX}=https://pypi.org/simple: with CUDA)")
    return TORCH_WITHOUT_CUDA


def pinned_torch() -> str:
    """The line of requirements/core.txt that pins PyTorch."""
    lines = (ROOT / "requirements" / "core.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def system_package_arguments(environment: Environment, files: list[Path]) -> list[str | Path]:
    """pip arguments for a sourced distribution: only packages that the system lacks, none built into ROS.

    cv_bridge and the messages are compiled against the system's NumPy, so it stays, and the pins, which are
    for the wheels, are dropped.
    """
    modules = {"opencv-python-headless": "cv2", "pillow": "PIL", "pyyaml": "yaml"}
    lines = [line for path in files for line in path.read_text().splitlines() if line and line[0] != "#"]
    names = sorted({re.split(r"[=<>;\[ ]", line)[0] for line in lines} - {"torch"})
    missing = [n for n in names if importlib.util.find_spec(modules.get(n, n).replace("-", "_")) is None]
    constraints = environment.folder(".venv") / "system-constraints.txt"
    code = "import numpy; print(f'numpy=={numpy.__version__}')"
    numpy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    constraints.write_text(f"{numpy.stdout}{pinned_torch()}\n")
    return ["-c", constraints, pinned_torch(), *missing]


def patch_cmake_files(environment: Environment) -> None:
    """Replace two folders of the build machine in the wheels' CMake files by this machine's."""
    code = "import numpy; print(numpy.get_include())"
    numpy = subprocess.run([environment.python, "-c", code], check=True, capture_output=True, text=True)
    headers = next(f for f in include_folders(environment.python) if Path(f, "Python.h").exists())
    for path in environment.folder(".venv").glob("share/*/cmake/*.cmake"):
        old = path.read_text()
        new = re.sub(r"/opt/python/[^;\s\"]*/numpy/_core/include", numpy.stdout.strip(), old)
        new = re.sub(r"/opt/python/cp\w+-cp\w+/include/python3\.\d+\w*", headers, new)
        if new != old:
            path.write_text(new)


def definitions_hash() -> str:
    """One hash over the inputs of the messages' build."""
    files = [ROOT / "package.xml", ROOT / "CMakeLists.txt"]
    for folder in ("msg", "srv", "interfaces"):
        files += sorted(path for path in (ROOT / folder).rglob("*") if path.is_file())
    content = b"".join(str(path.relative_to(ROOT)).encode() + path.read_bytes() for path in files)
    return hashlib.sha256(content).hexdigest()[:16]


@contextmanager
def building(environment: Environment, purpose: str) -> Iterator[None]:
    """Build messages and package into install/ during the block; for `messages` only if they have changed."""
    stamp = environment.folder("install") / f"built-{definitions_hash()}"
    if purpose == "messages" and stamp.exists():
        yield
        return
    venv = environment.folder(".venv")
    environ = dict(os.environ, VIRTUAL_ENV=str(venv), PATH=f"{venv / 'bin'}:{os.environ['PATH']}")
    environ.pop("_ROS_WHEELS_BOOTSTRAP_COMPLETE", None)
    if not environment.sourced:
        environ.update(CMAKE_PREFIX_PATH=str(venv), AMENT_PREFIX_PATH=str(venv), PYTHONPATH="")
    packages = [ROOT]
    probe = [str(environment.python), "-c", "import tf2_msgs.msg"]
    needs_tf = purpose != "messages"
    if needs_tf and subprocess.run(probe, capture_output=True, env=environ, check=False).returncode != 0:
        packages.append(ROOT / "interfaces" / "tf2_msgs")
    colcon = "import sys; from colcon_core.command import main; sys.exit(main())"  # may be the system's
    # Found by path only: a search would enter the virtual environment and find other packages' setup.py.
    command: list[str | Path] = [environment.python, "-c", colcon]
    command += ["--log-base", environment.folder("log"), "build"]
    command += ["--base-paths", *packages, "--symlink-install"]
    command += ["--build-base", environment.folder("build"), "--install-base", environment.folder("install")]
    command += ["--cmake-args", f"-DPython3_EXECUTABLE={environment.python}", "-DBUILD_TESTING=OFF"]
    command += [] if environment.sourced else ["-DPython3_FIND_VIRTUALENV=ONLY"]
    title = f"Building the messages and the package for {environment.distro}"
    with Log(environment.folder("log") / "setup-build.txt").running(title, command, environ):
        yield
    stamp.touch()


def write_command(environment: Environment) -> None:
    """The command `fast3r` in the environment, from the sources; it also works without ROS."""
    path = environment.folder(".venv") / "bin" / "fast3r"
    find = f"import sys\n\nsys.path.insert(0, {str(ROOT)!r})\n"
    start = "from fast3r_ros.cli import main\n\nsys.exit(main())\n"
    path.write_text(f"#!{environment.python}\n{find}{start}")
    path.chmod(0o755)


def main() -> int:
    """Run every step; returns the exit status (2: something is missing, in one line)."""
    parser = argparse.ArgumentParser(description="Make the environment of fast3r_ros.")
    parser.add_argument("--distro", default=None, help="ROS 2 from PyPI: jazzy (default), kilted")
    parser.add_argument("--for", dest="purpose", choices=sorted(REQUIREMENTS), default="demo")
    parser.add_argument("--model", default="", help="value of the demo's MODEL=")
    parser.add_argument(
        "--print-suffix", action="store_true", help="only print the suffix of the folders' names"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        environment = choose_environment(arguments.distro or None)
        if arguments.print_suffix:
            print(environment.suffix)
            return 0
        check_machine(environment)
        log = Log(environment.folder("log") / "setup.txt")
        create_venv(environment, log)
        # What only tests need is installed beside the build, which needs the rest.
        install_requirements(environment, "demo" if arguments.purpose == "test" else arguments.purpose, log)
        with building(environment, arguments.purpose):
            install_requirements(environment, arguments.purpose, log)
            install_networks(environment, arguments.purpose, arguments.model, log)
            if arguments.purpose != "messages":
                write_command(environment)
    except SetupError as error:
        print(f"fast3r_ros: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"fast3r_ros: cannot use {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
