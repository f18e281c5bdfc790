#!/usr/bin/env bash
# Builds target/release/libmoe.so; MOE_CUDA=0: the CPU backend alone; LIBMOE=path: takes that library instead.
# Other arguments go to cargo, in place of "build".
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

if [[ -n ${LIBMOE:-} ]]; then
  [[ -f $LIBMOE ]] || { echo "LIBMOE is $LIBMOE: there is no such file" >&2; exit 1; }
  say "taking $LIBMOE as it is"
  exit
fi
arguments=("${@:-build}")
features=()
wants_cuda || features=(--no-default-features)
cargo "${arguments[0]}" --release ${features[@]+"${features[@]}"} "${arguments[@]:1}"
