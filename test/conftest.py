"""For all tests: Ctrl-C reaches the programs that they start, and no example has a deadline.

A shell starts background jobs with SIGINT ignored, and a program hands that on to those it starts: tests
of Ctrl-C would fail because of where they run.  A signal that is handled here is back at its default in
every program started from here.
"""

import signal
from contextlib import suppress

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

with suppress(ImportError):  # `colcon test` runs without it
    from hypothesis import settings

    settings.register_profile("any_machine", deadline=None)
    settings.load_profile("any_machine")
