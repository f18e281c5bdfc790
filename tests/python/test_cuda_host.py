"""The host side of every launch, with no GPU: a mock driver stands behind a GPU context and writes down what it is asked to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import calls
import mock_driver

pytestmark = pytest.mark.cpu

OPERATIONS = sorted({call.name for call in calls.CALLS})


@pytest.fixture(scope="module")
def kernels():
    return mock_driver.kernels()


@pytest.fixture(scope="module")
def results(kernels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mock")
    source = mock_driver.ROOT / "tests" / "mock" / "cuda.c"
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
    environment = os.environ | mock_driver.environment(folder, kernels) | {"MOCK_LOG": str(folder / "log")}
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
