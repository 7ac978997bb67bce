#!/usr/bin/env bash
# All that needs a GPU, without network, in ten minutes: tests on the device, then speed and memory beside Hugging
# Face's NEZHA and a plain BERT, then the table for docs/benchmarks.md.
#
#   tests/gpu/run.sh                            on a machine with an NVIDIA GPU and PyTorch
#   tests/gpu/run.sh --rows FILE                rows go there (build/gpu/rows.jsonl); those in it are not made again,
#                                               so that a second call goes on where the first was cut
#   tests/gpu/run.sh --seconds N                for everything (570)
#   tests/gpu/run.sh --device cpu --quick       a dry run on any machine: tiny shapes
#
# PYTHON=… names the interpreter; else the first of python3 and .venv/bin/python whose torch sees the device. What it lacks
# is taken from build/gpu/wheels (tests/gpu/wheels.sh); without deepspeed its tests are skipped, without transformers
# 4.57.6 its rows stay unmeasured. WHEELS=… names another folder.
set -euo pipefail
cd "$(dirname "$0")/../.."

began=$SECONDS
device=cuda
rows=build/gpu/rows.jsonl
seconds=570
quick=()
while (($#)); do
    case $1 in
    --device) device=$2 && shift 2 ;;
    --rows) rows=$2 && shift 2 ;;
    --seconds) seconds=$2 && shift 2 ;;
    --quick) quick=(--quick) && shift ;;
    *) echo "tests/gpu/run.sh: unknown option $1; its first lines tell what there is" >&2 && exit 2 ;;
    esac
done

sees_device='import sys, torch; sys.exit(sys.argv[1] == "cuda" and not torch.cuda.is_available())'
python=
for candidate in ${PYTHON:+"$PYTHON"} python3 .venv/bin/python; do
    if "$candidate" -c "$sees_device" "$device" 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [[ -z $python ]]; then
    echo "tests/gpu/run.sh: no Python here has a torch that sees $device; name one by PYTHON=…" >&2
    exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
wheels=${WHEELS:-build/gpu/wheels}
if compgen -G "$wheels/*.whl" >/dev/null; then
    if ! "$python" -m pip install --quiet --no-index --no-deps --no-cache-dir --no-compile --target "$work/site" \
        "$wheels"/*.whl; then
        echo "tests/gpu/run.sh: $wheels is not for this $("$python" --version); tests/gpu/wheels.sh takes its version" >&2
        exit 1
    fi
    export PYTHONPATH=$PWD:$work/site
fi
mkdir -p "$(dirname "$rows")"

# Tests first, a third of the time at most: what is wrong need not be fast. The bodies' own tests take the GPU where
# there is one. INT lets pytest say what it found so far.
mapfile -t files < <(grep -rl 'mark\.gpu' tests --include='test_*.py')
files+=(tests/model/test_attention*.py)
marks='not ranks and not oracle'
if [[ $device == cpu ]]; then
    files=(tests/gpu/test_step.py)
    marks=gpu
fi
timeout --signal=INT --kill-after=20 $((seconds / 3)) \
    "$python" -m pytest -m "$marks" -q -p no:cacheprovider --continue-on-collection-errors --timeout=$((seconds / 4)) \
    --junit-xml="$work/tests.xml" "${files[@]}" || echo "not all tests passed" >&2

"$python" -m tests.gpu --device "$device" --rows "$rows" --tests "$work/tests.xml" "${quick[@]}" \
    --seconds $((seconds - SECONDS + began - 10)) --command tests/gpu/run.sh
"$python" -m tests.gpu.table "$rows"
