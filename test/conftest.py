"""For all tests: Ctrl-C reaches the programs that they start.

A shell starts background jobs with SIGINT ignored, and a program hands that on to those it starts; a test of
Ctrl-C would then fail because of where the tests run.  A signal that is handled here is back at its default in
every program started from here.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
