#!/usr/bin/env bash
# Wheels for a GPU machine without network, 22 MB in build/gpu/wheels: what requirements.txt beside this names.
#
#   tests/gpu/wheels.sh [PYTHON_VERSION]      of that machine; 3.12 unless given
#
# Needs pip and a network here, torch there. deepspeed and hjson come as source and are pure Python.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=${1:-3.12}
python=${PYTHON:-.venv/bin/python}
out=build/gpu/wheels
rm -rf "$out"
mkdir -p "$out"

source_only='^(deepspeed|hjson)=='
grep -E "$source_only" tests/gpu/requirements.txt |
    xargs env DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps --wheel-dir "$out"
grep -E '^[a-z]' tests/gpu/requirements.txt | grep -vE "$source_only" |
    xargs "$python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$out" \
        --python-version "$version" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64
ls "$out"
