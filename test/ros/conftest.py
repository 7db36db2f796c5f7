"""One run of the walk shared by the tests, and clean-up of shared memory."""

import fcntl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A `walk_session.Session` after the walk; in the end, a signal stops the node quietly."""
    from ros_harness import running
    from walk_session import Session

    session = Session(tmp_path_factory.mktemp("maps"))
    with running(session.node):
        session.play()
        yield session
        status = session.node.stop()
    session.listener.close()
    assert status == 0
    assert "Traceback" not in session.node.output()


@pytest.fixture(autouse=True, scope="module")
def clean_shared_memory() -> Iterator[None]:
    """Free the shared memory of nodes that were killed: 64 MB each, which would stay otherwise."""
    yield
    for lock in Path("/dev/shm").glob("fast*_el"):  # held with flock by a living owner
        with suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.with_name(lock.name.removesuffix("_el")).unlink(missing_ok=True)
            lock.unlink(missing_ok=True)
