#!/bin/bash
# Every check and test, in an environment that setup_environment.py has made; arguments go to pytest.
# Continues after a failure, so that one run shows everything; the exit status reports failures.
cd "$(dirname "$0")/.." || exit 2
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
check "documentation" zensical build --strict

# The core's tests run as on a machine without ROS, in parallel with those of the nodes, which mostly wait for
# messages and leave two cores half idle.
mkdir -p build && core_log=$PWD/build/test-core.txt # kept for inspection
scripts/run_stoppable.sh nice -n 19 env -u LD_LIBRARY_PATH -u AMENT_PREFIX_PATH -u CMAKE_PREFIX_PATH \
    PYTHONPATH="$PWD/test/without_ros" \
    python -m pytest --ignore test/ros --ignore test/package -n 2 --dist loadfile "$@" >"$core_log" 2>&1 &
core_tests=$!
trap 'kill -TERM $core_tests 2>/dev/null' EXIT
trap 'exit 130' INT TERM HUP
core_result() {
    wait "$core_tests"
    local status=$?
    core_tests= # ended: its number may belong to another process now
    cat "$core_log"
    return $status
}

check "mypy" python -m mypy
check "tests of nodes, packaging and the demo, against the installed package" \
    env PYTHONSAFEPATH=1 python -m pytest -o pythonpath= test/ros test/package "$@"
check "tests of the core, without ROS" core_result
exit $failed
