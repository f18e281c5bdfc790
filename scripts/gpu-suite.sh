#!/usr/bin/env bash
# Tests the CUDA backend on a machine with a GPU, python3 with torch, and a prebuilt libmoe.so: no cargo, no network.
#
#   scripts/build.sh && python3 scripts/stamp.py    # where the repository is: build libmoe.so and note what it was built from
#   LIBMOE=target/release/libmoe.so scripts/gpu-suite.sh [--quick] [--no-sanitizers]
#
# Writes benches/results/gpu-suite.json (or $OUT/gpu-suite.json).
set -euo pipefail
cd "$(dirname "$0")/.."
export LIBMOE="${LIBMOE:-$PWD/target/release/libmoe.so}"
export PYTHONPATH="$PWD/bindings/python:$PWD/tests/python${PYTHONPATH:+:$PYTHONPATH}"
exec python3 scripts/gpu_suite.py "$@"
