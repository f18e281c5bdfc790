#!/usr/bin/env bash
# The GPU suite and then the benchmark, section by section, on a machine with a GPU and python3 with torch: no cargo, no network.
#
#   LIBMOE=target/release/libmoe.so LIMIT=500 scripts/gpu-bench.sh [group of sections]...
#
# Each group, keys separated by commas, is a process of its own whose results are in $OUT (or benches/results) when it ends: a run
# that is cut short keeps what was measured. No group begins after LIMIT seconds. SUITE=0 leaves the tests out; other peers are
# where docs/benchmark.md says.
set -uo pipefail
cd "$(dirname "$0")/.."
export LIBMOE="${LIBMOE:-$PWD/target/release/libmoe.so}" PYTHONUNBUFFERED=1
export PYTHONPATH="$PWD/bindings/python${PYTHONPATH:+:$PYTHONPATH}"
out=${OUT:-benches/results}
groups=("$@")
((${#groups[@]})) || groups=(dispatch decode sinkhorn mlp_fwd,mlp_train,mlp_memory wgrad gemm,gemm_skew router router_logits host stages,kernels
  transformers gemm_tokens portable)

mkdir -p "$out"
[[ $out -ef benches/results ]] || cp -n benches/results/* "$out"
[[ ${SUITE:-1} == 0 ]] || OUT=$out scripts/gpu-suite.sh | tail -n 4
for group in "${groups[@]}"; do
  left=$((${LIMIT:-3600} - SECONDS))
  if ((left < 5)); then
    echo "no time left for $group"
    continue
  fi
  begin=$SECONDS
  timeout "$left" python3 -m libmoe.bench --only "$group" --out "$out" ${PEERS:-} >"$out/bench-${group//,/-}.log" 2>&1
  echo "$group ended with $? after $((SECONDS - begin)) s"
  grep -E "^[a-z_]+ .*(True|False|-)$" "$out/bench-${group//,/-}.log" | cut -c1-150
done
