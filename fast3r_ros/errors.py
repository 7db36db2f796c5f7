"""The one exception that users see as a single line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Invalid user input: a file, a parameter, a model name.

    The message says what was wrong, the value, and what to do.  The command line prints it as one line
    and exits with status 2; the node logs it and stops (start-up) or counts it (run time).
    """


@contextmanager
def optional(package: str, purpose: str) -> Iterator[None]:
    """For imports from an optional package: a missing or damaged package becomes a UserError.

    purpose: what needs the package, the subject of the sentence.  On a robot, package.xml names the packages.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{purpose} needs {package}: pip install {package} into the Python that runs this"
        ) from error
    except Exception as error:  # a partly installed package may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        library = re.search(r"lib(\S+)\.so\.(\d+)\S*: cannot open shared object file", reason)
        if library is not None:
            name, version = library[1].lower(), library[2]
            debian = f"lib{name}{'-' if name[-1].isdigit() else ''}{version}"  # Debian Policy 8.1
            raise UserError(
                f"{purpose} needs {package}, which needs a library of the system ({reason}): "
                f"apt install {debian}"
            ) from error
        raise UserError(
            f"{purpose} needs {package}, which is damaged ({reason}); install it again: "
            f"pip install --force-reinstall {package}"
        ) from error
