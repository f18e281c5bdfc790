"""The host side of every launch, with no GPU: a mock driver stands behind a GPU context and writes down what it is asked to do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import calls
import mock_driver
from libmoe import _library
from mock_driver import ROOT

pytestmark = pytest.mark.cpu

OPERATIONS = sorted({call.name for call in calls.CALLS})


@pytest.fixture(scope="module")
def kernels():
    return mock_driver.kernels()


@pytest.fixture(scope="module")
def environment(kernels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mock")
    source = ROOT / "tests" / "mock" / "cuda.c"
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
    return os.environ | mock_driver.environment(folder, kernels) | {"MOCK_LOG": str(folder / "log")}


@pytest.fixture(scope="module")
def results(environment):
    child = subprocess.run(
        [sys.executable, Path(__file__).with_name("cuda_host.py")], capture_output=True, text=True, env=environment, timeout=300)
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_asks_the_driver_for_its_launches_alone(operation, results):
    variants = [f"{call.name} {call.variant}".strip() for call in calls.CALLS if call.name == operation]
    if set(variants) <= set(results.get("left out", [])):
        pytest.skip("not built for GPUs, or in need of a communicator")
    assert not results.get(operation), "\n".join(results[operation])


def from_python(folder):
    return [sys.executable, Path(__file__).with_name("layer_streams.py")]


def from_cpp(folder):
    include = [f"-I{ROOT / part}" for part in ("include", "bindings/cpp")]
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-Wall", "-Wextra", "-Werror", *include, "-o", folder / "layer",
               Path(__file__).with_name("layer_streams.cpp"), _library.locate()]
    subprocess.run(command, check=True)
    return [folder / "layer"]


@pytest.mark.parametrize("program", [from_python, from_cpp])
def test_shared_experts_on_a_second_stream(program, environment, tmp_path):
    """Forward and backward each: the side stream begins where the layer's was, all of the shared experts' work is there, and the
    layer's stream waits for it before their sum, which is its last work."""
    # The library by its file: a program finds it by its soname.
    (tmp_path / "libmoe.so.0").symlink_to(Path(_library.locate()).resolve())
    environment = environment | {"MOCK_LOG": str(tmp_path / "log"), "LD_LIBRARY_PATH": f"{environment['LD_LIBRARY_PATH']}:{tmp_path}"}
    subprocess.run(program(tmp_path), check=True, env=environment, timeout=300)
    pattern = r"^(cuEventRecord|cuStreamWaitEvent|cuLaunchKernelEx|cuMemsetD8Async) (.*)$"
    order = []
    for name, rest in re.findall(pattern, (tmp_path / "log").read_text(), flags=re.M):
        fields = dict(field.split("=", 1) for field in rest.split(" "))
        what = {"cuEventRecord": "record", "cuStreamWaitEvent": "wait"}.get(name, "work")
        step = what, fields["stream"], *([fields["event"]] if what != "work" else [])
        # How many launches an operation has is none of this test's business.
        if order[-1:] != [step] or what != "work":
            order.append(step)
    main, side, fork, join = "0x50", "0x60", "0xf0", "0x70"
    once = [("record", main, fork), ("wait", side, fork), ("work", side), ("work", main), ("record", side, join), ("wait", main, join),
            ("work", main)]
    assert order == 2 * once
