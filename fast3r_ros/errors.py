"""The one exception that is shown to people as a single line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user gave cannot be used: a file, a parameter, a model name.

    The message says what was wrong, the value, and what to do.  The command line prints it as one line
    and exits with status 2; the node logs it and stops (start-up) or counts it (run time).
    """


@contextmanager
def optional(package: str, purpose: str) -> Iterator[None]:
    """Around imports from a package that an installation may lack: a missing or damaged one is a UserError.

    purpose: what needs it, the subject of the sentence.  A robot's system brings what package.xml names.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{purpose} needs {package}: pip install {package} into the Python that runs this"
        ) from error
    except Exception as error:  # whatever a package that is half installed raises
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{purpose} needs {package}, which is damaged ({reason}); install it again: "
            f"pip install --force-reinstall {package}"
        ) from error
