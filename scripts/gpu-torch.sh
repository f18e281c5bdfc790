#!/usr/bin/env bash
# The PyTorch and Transformers part of the GPU suite: tests, the step time beside grouped_mm, and the training picture.
# Needs python3 with torch, transformers and pytest, and LIBMOE. Results go to $OUT (or benches/results).
set -uo pipefail
cd "$(dirname "$0")/.."
export LIBMOE="${LIBMOE:-$PWD/target/release/libmoe.so}" PYTHONPATH="$PWD/bindings/python:$PWD/tests/python${PYTHONPATH:+:$PYTHONPATH}"
out=${OUT:-benches/results}
mkdir -p "$out"
pytest() { timeout "${LIMIT:-120}" python3 -m pytest -q -p no:cacheprovider --tb=short --device cuda:0 "$@"; }

adaptors="test_torch.py test_torch_ops.py test_torch_modes.py test_torch_layer.py test_megablocks.py test_megatron_experts.py test_tools.py"
pytest $(printf 'tests/python/%s ' $adaptors) >"$out/torch.log" 2>&1 &
pytest tests/python/test_transformers.py -k "not whole" --durations=5 >"$out/transformers.log" 2>&1 &
{ pytest tests/python/test_nllb.py && pytest tests/python/test_transformers.py -k whole; } >"$out/models.log" 2>&1 &
wait
python3 -m libmoe.bench --only transformers --out "$out" >"$out/bench.log" 2>&1
python3 examples/transformers/train.py --device cuda:0 --steps "${STEPS:-300}" --out "$out" >"$out/train.log" 2>&1
wait
for log in torch transformers models; do grep -E "^(E  |FAILED|ERROR)| (passed|failed|error)" "$out/$log.log" | cut -c1-200 | tail -n "${LINES_SHOWN:-25}"; done
grep -v "^\[transf" "$out/bench.log" | tail -n 16
tail -n 2 "$out/train.log"
