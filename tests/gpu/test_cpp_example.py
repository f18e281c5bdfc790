"""The C++ example on a GPU: built as a client would, without CUDA's toolkit, and run beside the CPU backend."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_layer_from_cpp(tmp_path):
    compiler = shutil.which("c++") or pytest.skip("there is no C++ compiler")
    library = Path(os.environ["LIBMOE"]).resolve()
    # The name that programs look for.
    (tmp_path / "libmoe.so.0").symlink_to(library)
    program = tmp_path / "moe_layer_cuda"
    command = [compiler, "-std=c++17", f"-I{ROOT}/include", f"-I{ROOT}/bindings/cpp", f"{ROOT}/examples/layer/moe_layer_cuda.cpp"]
    subprocess.run([*command, "-o", program, tmp_path / "libmoe.so.0", "-ldl", f"-Wl,-rpath,{tmp_path}"], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("\n") == 8
