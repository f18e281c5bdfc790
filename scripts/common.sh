# Sourced by the other scripts, in the repository's root.

PATH=$PATH:$HOME/.cargo/bin
rust_version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)

say() { printf '== %s\n' "$*"; }

# at_least 1.88 1.95.0
at_least() { [[ $(printf '%s\n' "$1" "$2" | sort -V | head -1) == "$1" ]]; }

wants_cuda() { [[ ${MOE_CUDA:-1} != 0 && -z ${LIBMOE:-} ]]; }

# The nvcc that build.rs would find without .venv, else that of .venv.
find_nvcc() {
  local candidate
  for candidate in "${NVCC:-}" "${CUDA_HOME:-}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc" \
    "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc "$PWD"/.venv/lib/python3*/site-packages/nvidia/cu13/bin/nvcc; do
    [[ -x $candidate ]] && { printf '%s\n' "$candidate"; return; }
  done
  return 1
}
