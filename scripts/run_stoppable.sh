#!/bin/bash
# Run a command so that Ctrl-C ends it without a traceback at any moment, even while Python is still starting:
#     scripts/run_stoppable.sh COMMAND ARGUMENTS...
# A script's background job ignores Ctrl-C; this script catches it and forwards it as SIGTERM, which silently ends a
# program that has no handler yet.
if ! command -v -- "$1" >/dev/null; then
    echo "fast3r_ros: there is no program $1 here (PYTHON=… names the interpreter)" >&2
    exit 127
fi
"$@" &
child=$!
trap 'kill -TERM $child 2>/dev/null' INT TERM HUP
wait $child
status=$?
while kill -0 $child 2>/dev/null; do # the trap interrupts the first wait
    wait $child
    status=$?
done
exit $status
