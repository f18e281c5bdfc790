"""Makes every valid call of calls.py on a GPU context of the mock driver (tests/mock/cuda.c) and checks what the driver was asked to
do: run by test_cuda_host.py in a process of its own, which has the mock's libcuda.so.1 on its library path."""

import ctypes
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import calls
import misuse
from libmoe import _header

SUCCESS, UNSUPPORTED, DRIVER_ERROR = (_header.constants["MOE_STATUS_" + n] for n in ("SUCCESS", "UNSUPPORTED", "DRIVER_ERROR"))
LIBRARY = misuse.LIBRARY
DRIVER = ctypes.CDLL("libcuda.so.1")
LOG = Path(os.environ["MOCK_LOG"])

CONTEXT = {"cuCtxGetCurrent", "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2"}
WORK = {"cuLaunchKernelEx", "cuMemsetD8Async"}
ALLOWED = CONTEXT | WORK | {"cuOccupancyMaxActiveBlocksPerMultiprocessor", "cuTensorMapEncodeTiled"}


def driver_calls():
    """(name, {field: value}) of each call of the driver since the last look."""
    lines = LOG.read_text().splitlines() if LOG.exists() else []
    LOG.unlink(missing_ok=True)
    parts = [line.split(" ") for line in lines]
    return [(name, dict(field.split("=", 1) for field in fields)) for name, *fields in parts]


def current_context():
    context = ctypes.c_void_p()
    DRIVER.cuCtxGetCurrent(ctypes.byref(context))
    return context.value


def check(prepared):
    """What is wrong with the call, or None where it is not built for GPUs yet."""
    wrong = []

    def run(stream):
        driver_calls()
        before = current_context()
        status = prepared.run(stream=stream)
        if current_context() != before:
            wrong.append("the current context changed")
        return status, LIBRARY.moe_last_error_message().decode(), driver_calls()

    for stream in (None, 0x1, 0xABC0):
        status, message, made = run(stream)
        if status == UNSUPPORTED and not any(name in WORK for name, _ in made):
            return None
        if status != SUCCESS:
            return [f"status {status}: {message}"]
        forbidden = {name for name, _ in made} - ALLOWED
        work = [fields for name, fields in made if name in WORK]
        if forbidden:
            wrong.append(f"calls {', '.join(sorted(forbidden))}")
        if not work:
            wrong.append("nothing was enqueued")
        if any(fields["stream"] != ("(nil)" if stream is None else hex(stream)) for fields in work):
            wrong.append(f"work on another stream than {stream}")
        if any(fields.get("context", "primary") != "primary" for fields in work):
            wrong.append("a launch outside the primary context")

    for failing in sorted({name for name, _ in made} & WORK):
        os.environ["MOCK_FAIL"] = f"{failing}:719"
        status, message, made = run(None)
        del os.environ["MOCK_FAIL"]
        if status != DRIVER_ERROR or f"{failing} failed with" not in message:
            wrong.append(f"status {status} where {failing} fails: {message}")
        # What comes after a failure would work on outputs that are undefined.
        if [name for name, _ in made if name in WORK][-1:] != [failing]:
            wrong.append(f"goes on after {failing} has failed")
    return wrong


def main():
    handle = ctypes.c_void_p()
    status = LIBRARY.moe_context_create(0, ctypes.byref(handle))
    assert status == SUCCESS, LIBRARY.moe_last_error_message().decode()
    ctx = SimpleNamespace(device=-1, _handle=handle)  # filled with NumPy arrays, as for the CPU
    results = defaultdict(list)
    for call in calls.CALLS:
        prepared = misuse.Prepared(ctx, call)
        found = None if prepared.has_comm else check(prepared)
        if found is None:
            results["left out"].append(f"{call.name} {call.variant}".strip())
        else:
            results[call.name] += [f"{call.variant or 'the call'}: {what}" for what in found]
    assert LIBRARY.moe_context_destroy(handle) == SUCCESS
    print(json.dumps(results))


if __name__ == "__main__":
    sys.exit(main())
