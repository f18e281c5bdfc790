"""What a process needs for the mock driver (tests/mock/cuda.c), which must have been on its library path from the start."""

import ctypes
import re
from pathlib import Path

import libmoe
import pytest
from libmoe import _library

ROOT = Path(__file__).resolve().parents[2]
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


def kernels():
    """name:bytes of its parameter, of every kernel."""
    pattern = r"entry function '(\w+)' for 'sm_80'(?:(?!entry function)[\s\S])*? (\d+) bytes cmem\[0\]"
    found = [match for report in reports() for match in re.findall(pattern, report)]
    if not found:
        pytest.skip("the library has no kernels for sm_80, or was built elsewhere")
    before = lambda name: BEFORE_MAPS if name.startswith(("hopper_", "decode_")) else BEFORE_PARAMETER
    return ",".join(f"{name}:{int(constant) - before(name)}" for name, constant in found)


def environment(folder, kernels):
    """Variables of such a process; `folder` has the driver."""
    return {
        "LD_LIBRARY_PATH": str(folder), "MOCK_KERNELS": kernels, "LIBMOE": _library.locate(), "MOE_CHECK": "0", "MOE_LOG": "off",
        "PYTHONPATH": str(Path(libmoe.__file__).parents[1]),
    }


class Context(libmoe.Context):
    """A GPU's context whose memory is the host's: it is filled with NumPy arrays, as for the CPU."""

    def __init__(self, device="cuda:0"):
        super().__init__("cpu")
        handle = ctypes.c_void_p()
        _library.call("context_create", 0, ctypes.byref(handle))
        self.close()
        self._handle = handle
