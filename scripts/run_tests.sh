#!/bin/bash
# Every check and test, after setup_environment.py:
#     scripts/run_tests.sh all|fast ARGUMENTS...     arguments go to pytest; fast leaves out the slow tests
# Continues after a failure, so that one run shows everything; the exit status reports failures.
cd "$(dirname "$0")/.." || exit 2
which=$1
shift
[ "$which" = all ] || set -- -m 'not slow' "$@"
messages_log=$PWD/build/setup-kilted.txt # these files are kept for inspection
core_log=$PWD/build/test-core.txt nodes_report=$PWD/build/test-nodes.xml
mkdir -p build

messages= core_tests= # numbers of the processes that run beside others, while they do
end_both() {
    local process
    for process in $messages $core_tests; do kill -TERM "$process" 2>/dev/null; done
}
trap end_both EXIT
trap 'exit 130' INT TERM HUP

# Kilted's messages are for one test; they are built only when their definitions have changed, beside the set-up,
# which mostly keeps one core busy.  With DISTRO=kilted it makes them itself.
if [ "$which" = all ] && [ "$DISTRO" != kilted ]; then
    scripts/run_stoppable.sh env -u ROS_DISTRO -u AMENT_PREFIX_PATH -u CMAKE_PREFIX_PATH -u PYTHONPATH \
        -u LD_LIBRARY_PATH "${PYTHON:-python3}" scripts/setup_environment.py --for messages --distro kilted \
        >"$messages_log" 2>&1 &
    messages=$!
fi

scripts/run_stoppable.sh "${PYTHON:-python3}" scripts/setup_environment.py --for test --distro "$DISTRO" || exit
. scripts/ros_env.sh || exit
failed=0
check() {
    echo "== $1"
    shift
    "$@"
    local status=$?
    [ $status -eq 0 ] || [ $status -eq 5 ] || failed=1 # 5: pytest found no test of the given name
}

check "ruff" ruff check .
check "ruff format" ruff format --check --quiet .

# The core's tests run as on a machine without ROS, in parallel with those of the nodes, which mostly wait for
# messages and leave two cores half idle.  One thread each: more would only wait for each other.  Their
# order is that of the collection: test/conftest.py puts the long ones first.
scripts/run_stoppable.sh nice -n 19 env -u LD_LIBRARY_PATH -u AMENT_PREFIX_PATH -u CMAKE_PREFIX_PATH \
    PYTHONPATH="$PWD/test/without_ros" OMP_NUM_THREADS=1 \
    python -m pytest --ignore test/ros --ignore test/package -n 2 --dist loadfile --no-loadscope-reorder \
    "$@" >"$core_log" 2>&1 &
core_tests=$!
result_of() { # the exit status of a process, after its output
    wait "$1"
    local status=$?
    cat "$2"
    return $status
}

check "mypy" python -m mypy
if [ -n "$messages" ]; then
    check "messages of Kilted" result_of "$messages" "$messages_log"
    messages= # ended: its number may belong to another process now
fi
check "tests of nodes, packaging and the demo, against the installed package" \
    env PYTHONSAFEPATH=1 python -m pytest -o pythonpath= --junitxml "$nodes_report" -o junit_logging=all \
    -o junit_log_passing_tests=false test/ros test/package "$@"
check "tests of the core, without ROS" result_of "$core_tests" "$core_log"
core_tests=
exit $failed
