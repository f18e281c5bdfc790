# Sourced by the other scripts, in the repository's root.

PATH=$PATH:$HOME/.cargo/bin
rust_version=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)

say() { printf '== %s\n' "$*"; }

# at_least 1.88 1.95.0
at_least() { [[ $(printf '%s\n' "$1" "$2" | sort -V | head -1) == "$1" ]]; }

wants_cuda() { [[ ${MOE_CUDA:-1} != 0 && -z ${LIBMOE:-} ]]; }

# Whether build.rs will find a compiler without the wheels of .venv; it has its own, longer search.
has_nvcc() {
  local nvcc
  for nvcc in "${NVCC:-}" "${CUDA_HOME:-}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
    [[ -x $nvcc ]] && at_least 12.8 "$("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p')" && return
  done
  return 1
}
