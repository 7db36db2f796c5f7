#!/bin/bash
# Run a command with the virtual environment and the built package:
#     DISTRO= scripts/run_in_ros.sh COMMAND ARGUMENTS...
. "$(dirname "$0")/ros_env.sh" || exit
exec "$@"
