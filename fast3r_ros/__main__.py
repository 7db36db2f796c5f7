"""`python -m fast3r_ros …` is the `fast3r` command."""

import sys

try:
    from fast3r_ros.cli import main
except KeyboardInterrupt:  # before the command has installed its own handler
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
