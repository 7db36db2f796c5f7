"""For all tests: Ctrl-C reaches the programs that they start.

A shell starts background jobs with SIGINT ignored, and a program hands that on to those it starts: tests
of Ctrl-C would fail because of where they run.  A signal that is handled here is back at its default in
every program started from here.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
