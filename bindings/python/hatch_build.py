"""The wheel: libmoe.so, built here, and moe.h beside the Python sources; its version from Cargo.toml, its tag from libmoe.so.

    pip install ./bindings/python

LIBMOE=path takes a built library. Otherwise cargo builds one in target/wheel, with kernels for every architecture unless
MOE_CUDA_ARCHS narrows them; nvcc comes from its wheels where there is no toolkit. MOE_CUDA=0 builds the CPU backend alone.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

SOURCES = Path(__file__).resolve().parents[2]


class Version(MetadataHookInterface):
    def update(self, metadata):
        manifest = (SOURCES / "Cargo.toml").read_text()
        metadata["version"] = re.search(r'^version = "(.+)"$', manifest, flags=re.M).group(1)


class Library(BuildHookInterface):
    def dependencies(self):
        """What building needs beside hatchling: nvcc's wheels, where kernels are compiled and there is no nvcc."""
        if not compiles_kernels() or toolkit():
            return []
        lines = (SOURCES / "scripts/requirements/nvcc.txt").read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    def initialize(self, version, build_data):
        # An editable install finds both in the source tree.
        if version == "editable":
            return
        library = Path(os.environ["LIBMOE"]) if os.environ.get("LIBMOE") else build()
        if not library.exists():
            raise FileNotFoundError(f"LIBMOE is {library}: there is no such file")
        build_data["force_include"][str(SOURCES / "include" / "moe.h")] = "libmoe/moe.h"
        build_data["force_include"][str(library)] = "libmoe/libmoe.so"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag(library)}"


def compiles_kernels():
    return not os.environ.get("LIBMOE") and os.environ.get("MOE_CUDA") != "0"


def toolkit():
    """An nvcc that is not of the wheels, as build.rs finds it."""
    homes = [os.environ[name] + "/bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    places = [os.environ.get("NVCC"), *homes, shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((place for place in places if place and Path(place).exists()), None)


def build():
    """target/wheel/release/libmoe.so, with paths on the builder's machine left out of it."""
    cargo = shutil.which("cargo") or shutil.which("cargo", path=str(Path.home() / ".cargo/bin"))
    if not cargo:
        raise RuntimeError("building libmoe needs cargo (https://rustup.rs), or LIBMOE=path of a built libmoe.so")
    target = SOURCES / "target" / "wheel"
    cargo_home = os.environ.get("CARGO_HOME") or Path.home() / ".cargo"
    unseen = [f"--remap-path-prefix={folder}={name}" for folder, name in ((cargo_home, "cargo"), (SOURCES, "libmoe"))]
    # Flags apart by 0x1f may have spaces in them. They would replace the builder's own, and then are left out.
    own = {"RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"} & os.environ.keys()
    flags = {} if own else {"CARGO_ENCODED_RUSTFLAGS": "\x1f".join(unseen)}
    environment = {"MOE_CUDA_ARCHS": "all"} | flags | os.environ | {"CARGO_TARGET_DIR": str(target)}
    command = [cargo, "build", "--release", "--locked", "--lib"]
    if not compiles_kernels():
        command.append("--no-default-features")
    elif not toolkit() and (nvcc := wheels_nvcc()):
        environment["NVCC"] = str(nvcc)
    subprocess.run(command, cwd=SOURCES, env=environment, check=True)
    return target / "release" / "libmoe.so"


def wheels_nvcc():
    """nvcc of the wheels, which the build's own environment holds."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else []
    return next((nvcc for folder in folders if (nvcc := Path(folder) / "cu13/bin/nvcc").exists()), None)


def platform_tag(library):
    """manylinux_2_34_x86_64: the newest version of glibc whose symbols the library takes."""
    versions = re.findall(rb"\0GLIBC_2\.(\d+)(?=\0|\.\d+\0)", library.read_bytes())
    return f"manylinux_2_{max(map(int, versions))}_{platform.machine()}"
