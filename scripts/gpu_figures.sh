#!/bin/bash
# Every figure that docs/performance.md marks "not measured", on a machine with a GPU:
#     scripts/gpu_figures.sh
#     RELEASE=PATH_TO_A_CHECKOUT_OF_facebookresearch/fast3r TIME_LIMIT=1200 scripts/gpu_figures.sh
# The most valuable figures per minute come first.  Each step writes its JSON and its log to OUTPUT; a step that fails
# or runs out of time does not stop the others, and is listed at the end.  Runs the package that is installed for
# `python` (or PYTHON); RELEASE also needs einops and omegaconf.
cd "$(dirname "$0")/.." || exit 2
PYTHON=${PYTHON:-python}
OUTPUT=${OUTPUT:-build/gpu_figures}
DEVICE=${DEVICE:-cuda}
MODELS=${MODELS:-large paper}      # the released network's shape, and the paper's
SIZE=${SIZE:-512x384}              # size of a view, width x height
VIEWS=${VIEWS:-32}                 # views of a window
SLIDES=${SLIDES:-4 1 2 8}          # new views of a window that slides; the first is compared with the release
MANY=${MANY:-320 1000 1500}        # views of one pass; the last is compared with the release
RUNS=${RUNS:-5}                    # measured runs of each stage, window and round
RELEASE=${RELEASE:-}               # a checkout of the official release; without it there is no comparison
TESTS=${TESTS:-test/benchmark test/geometry test/mapping test/model}
STEPS=${STEPS:-.}                  # regular expression: only steps whose names match it
TIME_LIMIT=${TIME_LIMIT:-3600}     # seconds per step
mkdir -p "$OUTPUT" || exit 2
export PYTHONUNBUFFERED=1
failed=()
child=
trap 'kill -TERM $child 2>/dev/null; exit 130' INT TERM HUP # timeout ends the whole group of a step

# step NAME COMMAND...: writes its output to NAME.log
step() {
    local name=$1 status begin=$SECONDS
    shift
    [[ $name =~ $STEPS ]] || return 0
    echo "== $name"
    rm -f "$OUTPUT/$name.json" # from an earlier run
    timeout --kill-after=20 "$TIME_LIMIT" "$@" >"$OUTPUT/$name.log" 2>&1 &
    child=$!
    wait "$child"
    status=$?
    case $status in
    0) echo "   $((SECONDS - begin)) s" && return 0 ;;
    124 | 137) failed+=("$name: not finished in $TIME_LIMIT s") ;;
    *) failed+=("$name: exit status $status") ;;
    esac
    echo "   ${failed[-1]}; the end of $OUTPUT/$name.log:"
    tail -n 5 "$OUTPUT/$name.log"
}

# benchmark FILE NAME OPTIONS...: writes FILE.json, case by case
benchmark() {
    local file=$1 name=$2
    shift 2
    step "$file" "$PYTHON" -m fast3r_ros benchmark "$name" --device "$DEVICE" --size "$SIZE" "$@" \
        --keep "$OUTPUT/$file.json"
}

# against FILE NETWORK OPTIONS...: the same, compared with the official release
against() {
    local file=$1 network=$2
    shift 2
    [ -z "$RELEASE" ] && return
    step "$file" "$PYTHON" benchmark/against_release.py --release "$RELEASE" --device "$DEVICE" \
        --network "$network" --views "$VIEWS" --size "${SIZE#*x}" "${SIZE%x*}" --slide "${SLIDES%% *}" "$@" \
        --keep "$OUTPUT/$file.json"
}

# shellcheck disable=SC2086 # lists of numbers and paths are meant to be split
measure() {
    local model
    for model in $MODELS; do
        against "against_release_$model" "$model" --rounds "$RUNS"
        benchmark "network_$model" network --model "$model" --views $VIEWS --runs "$RUNS"
        benchmark "window_$model" window --model "$model" --views $VIEWS --slides $SLIDES --runs "$RUNS"
    done
    step tests "$PYTHON" -m pytest -q $TESTS --junitxml "$OUTPUT/tests.xml"
    for model in $MODELS; do
        benchmark "window_${model}_stream4" window --model "$model" --views $VIEWS --slides $SLIDES \
            --runs "$RUNS" --accelerate stream=4
        benchmark "window_${model}_no_capture" window --model "$model" --views $VIEWS --slides $SLIDES \
            --runs "$RUNS" --no-capture
        benchmark "acceleration_$model" acceleration --model "$model" --views $VIEWS --runs "$RUNS"
    done
    for model in $MODELS; do
        benchmark "scale_$model" scale --model "$model" --views $MANY
        against "against_release_${model}_many" "$model" --rounds 0 --many "${MANY##* }"
    done
}

command -v nvidia-smi >/dev/null && nvidia-smi >"$OUTPUT/nvidia-smi.txt"
measure
documents=()
for file in "$OUTPUT"/*.json; do
    [ -e "$file" ] && documents+=("$file")
done
step report "$PYTHON" -m fast3r_ros benchmark report "${documents[@]}" --output "$OUTPUT/report"
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
echo "all of $OUTPUT/report/report.md was measured"
