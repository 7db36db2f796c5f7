"""`python -m fast3r_ros …` is the `fast3r` command."""

import sys

from fast3r_ros.cli import main

if __name__ == "__main__":
    sys.exit(main())
