#!/usr/bin/env bash
# setup.sh NAME...: checks that this machine has the tools, then installs scripts/requirements/NAME.txt into .venv.
# nvcc is skipped when there is one already, or when MOE_CUDA=0 asks for none.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/common.sh

missing=()
need() { missing+=("  $1: $2"); }

command -v c++ >/dev/null || need "a C++ compiler" "apt install g++"
if ! command -v cargo >/dev/null; then
  [[ -n ${LIBMOE:-} ]] || need "cargo $rust_version or newer" "https://rustup.rs"
elif ! at_least "$rust_version" "$(cargo --version | cut -d' ' -f2)"; then
  need "cargo $rust_version or newer (here: $(cargo --version | cut -d' ' -f2))" "rustup update"
fi
if ! command -v python3 >/dev/null; then
  need "python3 with venv" "apt install python3 python3-venv"
elif ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
  need "python3.10 or newer (here: $(python3 --version | cut -d' ' -f2))" "install a newer one, or put it first in PATH"
elif ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
  need "python3's venv" "apt install python3-venv"
fi
if ((${#missing[@]})); then
  printf 'This machine lacks:\n' >&2
  printf '%s\n' "${missing[@]}" >&2
  exit 1
fi

[[ -x .venv/bin/python ]] || python3 -m venv .venv
for name in "$@"; do
  if [[ $name == nvcc ]] && { ! wants_cuda || has_nvcc; }; then continue; fi
  list=scripts/requirements/$name.txt
  done=.venv/$name.installed
  cmp -s "$list" "$done" && continue
  say "installing into .venv: $(grep -v '^#' "$list" | tr '\n' ' ')"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$list"
  cp "$list" "$done"
done
