"""Ctrl-C at fixed moments: inside of imports that swallow it, while results are written, at the start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from patience import HANG_SECONDS

from fast3r_ros.cli import interrupt, main

SWALLOWS = """
try:
    import {inner}
except BaseException:
    {inner} = None
"""
SENDS = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
WHOLE = True
"""


def test_an_import_that_swallows_it_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "outer_library.py").write_text(SWALLOWS.format(inner="inner_library"))
    (tmp_path / "inner_library.py").write_text(SENDS)
    monkeypatch.syspath_prepend(tmp_path)
    whole = False
    with interrupt.watched() as ctrl_c:
        try:
            import outer_library

            whole = outer_library.inner_library.WHOLE  # before any time has passed
            assert ctrl_c.timer is not None
            ctrl_c.timer.join()  # it interrupts once more, after the import
            for _ in range(1000):
                pass  # Python looks for signals in between
        except KeyboardInterrupt:
            pass
        else:
            pytest.fail("Ctrl-C was lost")
    assert whole
    assert ctrl_c.pressed
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_first_ctrl_c_does_not_interrupt_a_held_block(capsys):
    with interrupt.watched() as ctrl_c:
        with interrupt.held():
            signal.raise_signal(signal.SIGINT)
            assert ctrl_c.pressed
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert "writing the results" in capsys.readouterr().err


def test_while_results_are_written_they_are_finished(tmp_path, monkeypatch):
    from fast3r_ros.io import formats

    def write_then_press(*arguments, **named):
        signal.raise_signal(signal.SIGINT)
        return real(*arguments, **named)

    real = formats.write_pcd
    monkeypatch.setattr(formats, "write_pcd", write_then_press)
    assert main(["reconstruct", "synthetic:1", "--output", str(tmp_path / "out")]) == 130
    assert (tmp_path / "out" / "map.pcd").is_file()
    assert (tmp_path / "out" / "map.glb").is_file()


AT_IMPORT = """
import os, signal, sys
class At:
    def find_spec(self, name, path=None, target=None):
        if name == "{name}":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, At())
"""


@pytest.mark.parametrize(
    "name",
    [
        "fast3r_ros.cli",
        "argparse",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("fast3r_ros.cli.info", "PIL.ImageOps")),
    ],
)
def test_before_anything_is_done(tmp_path, name):
    (tmp_path / "sitecustomize.py").write_text(AT_IMPORT.format(name=name))
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    ended = subprocess.run(
        [sys.executable, "-m", "fast3r_ros", "info", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert (ended.returncode, ended.stdout) == (130, "")
    assert "Traceback" not in ended.stderr
