"""The host side of every launch, with no GPU: a mock driver stands behind a GPU context and writes down what it is asked to do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import calls
import libmoe
from libmoe import _library

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = sorted({call.name for call in calls.CALLS})
# Bytes of constant memory that precede a kernel's parameter on sm_80; tensor maps begin at a multiple of 64.
BEFORE_PARAMETER = 352
BEFORE_MAPS = 384


def reports():
    """ptxas' reports of the library's own kernels: those of the build whose fatbins it carries."""
    library = Path(_library.locate()).read_bytes()
    for folder in (ROOT / "target").glob("*/build/libmoe-*/out/kernels"):
        fatbins = list(folder.glob("*.fatbin"))
        if fatbins and all(fatbin.read_bytes() in library for fatbin in fatbins):
            return [path.read_text() for path in folder.glob("*.ptxas.txt")]
    return []


@pytest.fixture(scope="module")
def kernels():
    """name:bytes of its parameter, of every kernel."""
    pattern = r"entry function '(\w+)' for 'sm_80'(?:(?!entry function)[\s\S])*? (\d+) bytes cmem\[0\]"
    found = [match for report in reports() for match in re.findall(pattern, report)]
    if not found:
        pytest.skip("the library has no kernels for sm_80, or was built elsewhere")
    return ",".join(f"{name}:{int(constant) - (BEFORE_MAPS if name.startswith('hopper_') else BEFORE_PARAMETER)}" for name, constant in found)


@pytest.fixture(scope="module")
def results(kernels, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mock")
    source = ROOT / "tests" / "mock" / "cuda.c"
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
    environment = os.environ | {
        "LD_LIBRARY_PATH": str(folder), "MOCK_LOG": str(folder / "log"), "MOCK_KERNELS": kernels, "LIBMOE": _library.locate(),
        "MOE_CHECK": "0", "MOE_LOG": "off", "PYTHONPATH": str(Path(libmoe.__file__).parents[1]),
    }
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
