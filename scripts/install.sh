#!/usr/bin/env bash
# install.sh PREFIX: copies the built library, the headers, and what CMake and pkg-config need. Nothing in the installed tree
# names its place, so that it may be moved. DESTDIR is put before PREFIX; LIBMOE is the library to install.
set -euo pipefail
prefix=${1:?usage: install.sh PREFIX}
[[ $prefix == /* ]] || prefix=$PWD/$prefix
root=${DESTDIR:-}$prefix
library=$(realpath "${LIBMOE:-$(dirname "$0")/../target/release/libmoe.so}")
cd "$(dirname "$0")/.."
source scripts/common.sh

fill() { sed "s/@VERSION@/$version/g" "$1"; }
soname=libmoe.so.${version%%.*}

mkdir -p "$root"/{include,lib/cmake/moe,lib/pkgconfig}
install -m 755 "$library" "$root/lib/libmoe.so.$version"
ln -sf "libmoe.so.$version" "$root/lib/$soname"
ln -sf "$soname" "$root/lib/libmoe.so"
install -m 644 include/moe.h bindings/cpp/moe.hpp bindings/cpp/moe_layer.hpp "$root/include/"
install -m 644 bindings/cmake/moe-config.cmake "$root/lib/cmake/moe/"
fill bindings/cmake/moe-config-version.cmake.in >"$root/lib/cmake/moe/moe-config-version.cmake"
fill bindings/cmake/moe.pc.in >"$root/lib/pkgconfig/moe.pc"
say "installed libmoe $version in $root"
