"""Lets the tests of this folder import its helper modules, and share one run of the walk."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A `walk_session.Session` after the walk; in the end, a signal stops the node quietly."""
    from ros_harness import running
    from walk_session import Session

    session = Session(tmp_path_factory.mktemp("maps"))
    with running(session.node):
        session.play()
        yield session
        status, seconds = session.node.stop()
    session.listener.close()
    assert status == 0
    assert seconds < 3
    assert "Traceback" not in session.node.output()
