"""Every exported function, each argument wrong in turn: a status and a message that names the argument, and nothing written."""

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import calls
import libmoe
from libmoe import _context, _header, _library

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = sorted({call.name for call in calls.CALLS})
# Functions that are no operations, each with a test below.
OTHERS = {
    "context_create", "context_destroy", "context_info", "stream_wait", "version", "status_string", "last_error_message",
    "device_report_message", "comm_from_nccl", "comm_from_callbacks", "comm_register", "comm_destroy",
}
SUCCESS, INVALID, UNSUPPORTED = (_header.constants["MOE_STATUS_" + n] for n in ("SUCCESS", "INVALID_ARGUMENT", "UNSUPPORTED"))


def test_every_function_is_covered():
    covered = OTHERS | set(OPERATIONS) | {name + "_workspace_size" for name in OPERATIONS} | set(calls.QUERIES)
    assert {"moe_" + name for name in covered} == set(_header.prototypes)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_field_is_covered(operation):
    """A field that no variant sets would not be spoiled."""
    variants = [call for call in calls.CALLS if call.name == operation]
    parameters = {p.name: p.base for p in _header.prototypes["moe_" + operation].parameters}
    declarations = _header.structs[parameters["args"]].declarations
    missing = set(declarations) - {"struct_size", "reserved"} - {name for call in variants for name in call.args}
    # Their calls need a communicator.
    assert not missing or "comm" in parameters, f"calls.py never sets args.{', args.'.join(sorted(missing))}"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation(operation, request):
    command = [sys.executable, Path(__file__).with_name("misuse.py"), operation, str(request.config.seed)]
    environment = os.environ | {"LIBMOE": _library.locate(), "MOE_LOG": "off", "RAYON_NUM_THREADS": "2"}
    child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    last = child.stderr.strip().splitlines()[-1:]
    assert child.returncode == 0, f"died with {child.returncode}, in or after the case {last}\n{child.stderr[-2000:]}"
    result = json.loads(child.stdout)
    failures = result["failures"]
    assert not failures, f"{len(failures)} of {result['cases']} cases:\n" + "\n".join(failures[:60])
    assert result["cases"] > 40


@pytest.fixture
def raw():
    return _library.library()


@pytest.fixture
def cpu(raw):
    with libmoe.Context("cpu") as context:
        yield context._handle


def refused(raw, status, *words):
    message = raw.moe_last_error_message().decode()
    assert status == INVALID, message
    assert all(word in message for word in words), message


def test_context_create(raw):
    for device in (-2, -(2**31)):
        out = ctypes.c_void_p(0x1234)
        refused(raw, raw.moe_context_create(device, ctypes.byref(out)), "moe_context_create", f"device is {device}")
        assert out.value == 0x1234
    refused(raw, raw.moe_context_create(-1, None), "ctx is NULL")


def test_context_without_a_driver_says_so(raw):
    try:
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("this machine has a driver")
    except OSError:
        pass
    out = ctypes.c_void_p(0x1234)
    status = raw.moe_context_create(0, ctypes.byref(out))
    message = raw.moe_last_error_message().decode()
    assert out.value == 0x1234
    if status == UNSUPPORTED:
        assert "built without CUDA" in message
    else:
        assert status == _header.constants["MOE_STATUS_NO_DRIVER"], message
        assert "driver" in message.lower() or "libcuda" in message


def test_context_destroy(raw):
    assert raw.moe_context_destroy(None) == SUCCESS
    assert raw.moe_comm_destroy(None) == SUCCESS


def test_context_info(raw, cpu):
    info_t = _header.structs["moe_context_info_t"]
    size = ctypes.sizeof(info_t)
    refused(raw, raw.moe_context_info(None, ctypes.byref(_context.initial(info_t))), "ctx is NULL")
    refused(raw, raw.moe_context_info(cpu, None), "info is NULL")
    for wrong in (0, 7, 1 << 20):
        info = info_t(struct_size=wrong, device=77)
        refused(raw, raw.moe_context_info(cpu, ctypes.byref(info)), "info.struct_size", str(wrong))
        assert info.device == 77
    older = info_t(struct_size=8, device=77, multiprocessors=77)
    assert raw.moe_context_info(cpu, ctypes.byref(older)) == SUCCESS
    assert (older.struct_size, older.device, older.multiprocessors) == (8, -1, 77)
    newer = (ctypes.c_int32 * (size // 4 + 2))(size + 8)
    assert raw.moe_context_info(cpu, ctypes.byref(newer)) == SUCCESS
    assert (newer[0], newer[1], newer[-1]) == (size + 8, -1, 0)
    newer[-1] = 1
    refused(raw, raw.moe_context_info(cpu, ctypes.byref(newer)), "info")


def test_stream_wait(raw, cpu):
    assert raw.moe_stream_wait(cpu, None, None, None) == raw.moe_stream_wait(cpu, None, None, 0x10) == SUCCESS
    refused(raw, raw.moe_stream_wait(None, None, None, None), "ctx is NULL")
    refused(raw, raw.moe_stream_wait(cpu, 0x10, None, None), "moe_stream_wait", "stream is 0x10; NULL on the CPU")
    refused(raw, raw.moe_stream_wait(cpu, None, 0x10, None), "other is 0x10; NULL on the CPU")


def test_version_is_that_of_cargo_toml(raw):
    version = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), flags=re.M)[1]
    assert libmoe.version() == version
    assert [int(part) for part in version.split(".")] == [_header.constants["MOE_VERSION_" + p] for p in ("MAJOR", "MINOR", "PATCH")]


def test_status_strings(raw):
    statuses = [value for name, value in _header.constants.items() if name.startswith("MOE_STATUS_")]
    texts = [raw.moe_status_string(status) for status in statuses]
    assert len(set(texts)) == len(statuses) == 10 and all(texts)
    assert raw.moe_status_string(-1) == raw.moe_status_string(1000) == raw.moe_status_string(2**31 - 1) == b"unknown status"


def test_last_error_message_is_the_threads_own(raw):
    import threading

    raw.moe_context_create(-5, None)
    before = raw.moe_last_error_message()
    seen = []

    def other():
        seen.append(raw.moe_last_error_message())
        raw.moe_context_info(None, None)
        seen.append(raw.moe_last_error_message())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen[0] == b"" and b"moe_context_info" in seen[1]
    assert raw.moe_last_error_message() == before != b""
    assert raw.moe_context_destroy(None) == SUCCESS
    assert raw.moe_last_error_message() == before, "success does not clear it"


def test_device_report_message(raw):
    report_t = _header.structs["moe_device_report_t"]
    report = report_t(what=_header.constants["MOE_FAULT_COUNT"], place=5, value=9)
    buffer = ctypes.create_string_buffer(b"\x5a" * 256, 256)
    refused(raw, raw.moe_device_report_message(None, buffer, 256), "report is NULL")
    refused(raw, raw.moe_device_report_message(ctypes.byref(report), None, 256), "buffer is NULL")
    refused(raw, raw.moe_device_report_message(ctypes.byref(report), buffer, 0), "size is 0")
    refused(raw, raw.moe_device_report_message(ctypes.addressof(report) + 1, buffer, 256), "report")
    assert buffer.raw == b"\x5a" * 256
    assert raw.moe_device_report_message(ctypes.byref(report), buffer, 10) == SUCCESS
    assert buffer.raw[:11] == b"count 9 i\0\x5a"
    for what in range(-1, 40):
        assert raw.moe_device_report_message(ctypes.byref(report_t(what=what, place=-1, value=2**63 - 1)), buffer, 256) == SUCCESS
        assert buffer.value and (b"unknown" in buffer.value) == (not 0 <= what <= libmoe.FAULT_POINTER)


def test_communicators(raw, cpu):
    out = ctypes.c_void_p(0x1234)
    callbacks_t = _header.structs["moe_comm_callbacks_t"]
    callbacks = _context.initial(callbacks_t)
    callbacks.num_ranks = 1
    refused(raw, raw.moe_comm_from_nccl(None, 0x100, ctypes.byref(out)), "ctx is NULL")
    refused(raw, raw.moe_comm_from_nccl(cpu, None, ctypes.byref(out)), "nccl_comm is NULL")
    refused(raw, raw.moe_comm_from_nccl(cpu, 0x100, None), "comm is NULL")
    refused(raw, raw.moe_comm_from_callbacks(None, ctypes.byref(callbacks), ctypes.byref(out)), "ctx is NULL")
    refused(raw, raw.moe_comm_from_callbacks(cpu, None, ctypes.byref(out)), "callbacks is NULL")
    refused(raw, raw.moe_comm_from_callbacks(cpu, ctypes.byref(callbacks), None), "comm is NULL")
    for wrong in (0, 7, 1 << 20):
        callbacks.struct_size = wrong
        refused(raw, raw.moe_comm_from_callbacks(cpu, ctypes.byref(callbacks), ctypes.byref(out)), "callbacks.struct_size")
    refused(raw, raw.moe_comm_register(None, 0x100, 8), "comm is NULL")
    assert out.value == 0x1234
