"""The binding itself: the header as ctypes against a C compiler, and misuse that must never reach the library."""

import ctypes
import re
import shutil
import subprocess

import numpy as np
import pytest

import harness
import libmoe
from harness import array, empty, host, zeros
from libmoe import _arrays, _context, _header

ROUTER = {"logits_dtype": "fp32", "num_tokens": 4, "num_experts": 8, "top_k": 2}


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_structs_and_constants_are_the_compilers(tmp_path):
    lines = [f'printf("{name} 0 %lld\\n", (long long){name});' for name in _header.constants]
    for name, struct in _header.structs.items():
        lines.append(f'printf("{name} . %zu\\n", sizeof({name}));')
        lines += [f'printf("{name} {d} %zu\\n", offsetof({name}, {d}));' for d in struct.declarations]
    source = tmp_path / "sizes.c"
    source.write_text("#include <stdio.h>\n#include <moe.h>\nint main(void) {\n" + "\n".join(lines) + "\n}\n")
    subprocess.run(["cc", f"-I{_header.locate().parent}", source, "-o", tmp_path / "sizes"], check=True)
    said = subprocess.run([tmp_path / "sizes"], check=True, capture_output=True, text=True).stdout
    expected = {tuple(line.split()[:2]): int(line.split()[2]) for line in said.splitlines()}
    ours = {(name, "0"): value for name, value in _header.constants.items()}
    for name, struct in _header.structs.items():
        ours[name, "."] = ctypes.sizeof(struct)
        ours.update({(name, field): getattr(struct, field).offset for field in struct.declarations})
    assert ours == expected


def test_header_is_read_whole():
    text = _header.locate().read_text()
    assert len(_header.structs) == text.count("\n} moe_") >= 45
    assert len(_header.prototypes) == len(re.findall(r"^\w[\w *]*\bmoe_\w+\(", text, flags=re.M)) >= 60
    callbacks = _header.structs["moe_comm_callbacks_t"].declarations
    assert [callbacks[name].base for name in ("all_to_all", "all_reduce", "reduce_scatter")] == ["function"] * 3
    assert _header.structs["moe_tensor_t"].reserved.size == 32


def test_every_prototype_is_exported():
    loaded = libmoe._library.library()
    assert all(hasattr(loaded, name) for name in _header.prototypes)
    assert libmoe.version().count(".") == 2


def test_context(ctx):
    assert ctx.info["device"] == ctx.device
    assert ctx.info["multiprocessors"] >= 1
    other = libmoe.Context(harness.device.name)
    other.close()
    other.close()
    with pytest.raises(ValueError, match="closed"):
        other.info


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", None, ""])
def test_devices_that_do_not_exist(device):
    with pytest.raises(ValueError, match="device"):
        libmoe.Context(device)
    with pytest.raises(libmoe.InvalidArgument, match="-7"):
        libmoe.Context(-7)


def test_errors_of_the_library_carry_status_and_message(ctx):
    with pytest.raises(libmoe.Error) as caught:
        ctx.query("router_fwd_workspace_size", {**ROUTER, "num_experts": -1})
    assert caught.value.status in (libmoe.STATUS_INVALID_ARGUMENT, libmoe.STATUS_UNSUPPORTED)
    assert caught.value.message and caught.value.message in str(caught.value)
    assert issubclass(libmoe.InvalidArgument, ValueError) and issubclass(libmoe.Unsupported, NotImplementedError)
    assert {e.__name__ for e in libmoe._library.ERRORS.values()} <= set(vars(libmoe))


def fill(ctx, struct, values):
    return _context._Filler(ctx).fill(struct, "args", values)


@pytest.mark.parametrize("values, error, words", [
    ({"logit": 1}, TypeError, "no field 'logit'"),
    ({"num_tokens": 1.5}, TypeError, "args.num_tokens is 1.5"),
    ({"num_tokens": 1 << 63}, ValueError, "args.num_tokens is 9223372036854775808"),
    ({"top_k": "2"}, TypeError, "args.top_k"),
    ({"score_function": 1 << 31}, ValueError, "32 bits"),
    ({"logits_dtype": "fp31"}, TypeError, "args.logits_dtype"),
    ({"logits_dtype": np.complex64}, TypeError, "complex64"),
])
def test_misuse_of_descriptors(ctx, values, error, words):
    with pytest.raises(error, match=words):
        fill(ctx, "moe_router_desc_t", values)


def test_descriptor_values(ctx):
    desc = fill(ctx, "moe_router_desc_t", {"logits_dtype": np.float16, "num_tokens": np.int32(3), "scaling_factor": 2.5})
    assert (desc.struct_size, desc.logits_dtype) == (ctypes.sizeof(desc), libmoe.DTYPE_FP16)
    assert (desc.num_tokens, desc.scaling_factor, desc.num_experts) == (3, 2.5, 0)
    for dtype in ("bf16", "bfloat16", "BF16", harness.NUMPY["bf16"], libmoe.DTYPE_BF16, empty(1, "bf16").dtype):
        assert fill(ctx, "moe_router_desc_t", {"logits_dtype": dtype}).logits_dtype == libmoe.DTYPE_BF16


def address(x):
    return _arrays.view("x", x).pointer


def test_tensors(ctx):
    x = empty((6, 8), "bf16")
    tensor = fill(ctx, "moe_router_fwd_args_t", {"logits": x}).logits
    assert (tensor.struct_size, tensor.dtype) == (ctypes.sizeof(tensor), libmoe.DTYPE_BF16)
    assert (tensor.data, tensor.row_pitch, tensor.group_stride) == (address(x), 0, 0)
    part = fill(ctx, "moe_router_fwd_args_t", {"logits": x[:, 2:5]}).logits
    assert (part.data, part.row_pitch) == (address(x) + 4, 8)
    stacked = empty((3, 6, 8), "fp32")[:, 1:4, :5]
    grouped = fill(ctx, "moe_grouped_gemm_fwd_args_t", {"b": stacked}).b
    assert (grouped.row_pitch, grouped.group_stride) == (8, 48)
    absent = fill(ctx, "moe_router_fwd_args_t", {"ids": None}).ids
    assert (absent.data, absent.struct_size, absent.dtype) == (None, ctypes.sizeof(absent), 0)


def test_tensors_by_pointers(ctx):
    filler = _context._Filler(ctx)
    experts = [empty((4, 8), "fp16"), None, empty((4, 8), "fp16")]
    tensor = filler.fill("moe_grouped_gemm_fwd_args_t", "args", {"b": experts}).b
    assert tensor.data is None and tensor.dtype == libmoe.DTYPE_FP16
    table = next(owner for owner in filler.kept if address(owner) == tensor.pointers)
    assert host(table).tolist() == [address(experts[0]), 0, address(experts[2])]
    with pytest.raises(ValueError, match="args.b: its arrays differ"):
        fill(ctx, "moe_grouped_gemm_fwd_args_t", {"b": [experts[0], empty((4, 9), "fp16")]})
    with pytest.raises(ValueError, match="without an array"):
        fill(ctx, "moe_grouped_gemm_fwd_args_t", {"b": [None]})


def test_small_structs(ctx):
    count = zeros(1, "int64")
    args = fill(ctx, "moe_combine_fwd_args_t", {"num_tokens": count, "y_mode": "add"})
    assert (args.num_tokens.device, args.num_tokens.dtype) == (address(count), libmoe.DTYPE_INT64)
    assert (args.y_mode.mode, args.y_mode.add) == (libmoe.OUTPUT_ADD, None)
    flag = zeros(1, "int32")
    mode = fill(ctx, "moe_combine_fwd_args_t", {"y_mode": flag}).y_mode
    assert (mode.mode, mode.add) == (libmoe.OUTPUT_FROM_DEVICE, address(flag))
    random = fill(ctx, "moe_router_fwd_args_t", {"random": (np.int64(7), 3)}).random
    assert (random.seed, random.offset, random.seed_device) == (7, 3, None)
    seed = zeros(1, "int64")
    random = fill(ctx, "moe_router_fwd_args_t", {"random": {"seed": seed}}).random
    assert (random.seed, random.seed_device, random.offset_device) == (0, address(seed), None)


def transposed(x):
    return x.T


@pytest.mark.parametrize("field, make, error, words", [
    ("logits", lambda: [1.0, 2.0], TypeError, "args.logits is float: not an array"),
    ("logits", lambda: "array", TypeError, "args.logits is str"),
    ("logits", lambda: transposed(empty((4, 8), "fp32")), ValueError, "args.logits has shape .* rows must be contiguous"),
    ("logits", lambda: empty((4, 8), "fp32")[:, ::2], ValueError, "args.logits"),
    ("tokens_per_expert", lambda: zeros(8, "int32"), TypeError, "args.tokens_per_expert has dtype int32; it must be int64"),
    ("tokens_per_expert", lambda: zeros((8, 2), "int64")[:, 0], ValueError, "must be contiguous"),
    ("selection_bias", lambda: zeros(8, "bf16"), TypeError, "args.selection_bias has dtype bfloat16"),
    ("selection_bias", lambda: [0.0] * 8, TypeError, "neither an array nor an address"),
    ("num_tokens", lambda: zeros(2, "int64"), TypeError, "args.num_tokens"),
    ("num_tokens", lambda: zeros(1, "fp32"), TypeError, "args.num_tokens"),
    ("report", lambda: zeros(2, "int64"), ValueError, "args.report has 16 bytes"),
    ("random", lambda: (1, 2, 3), ValueError, "zip"),
])
def test_misuse_of_arguments(ctx, field, make, error, words):
    with pytest.raises(error, match=words):
        fill(ctx, "moe_router_fwd_args_t", {field: make()})


def test_arrays_of_another_device(ctx):
    if harness.on_cpu():
        foreign = type("Foreign", (), {"__cuda_array_interface__": {
            "data": (4096, False), "shape": (4, 8), "typestr": "<f4", "version": 3,
        }, "device": type("Device", (), {"id": 0})})()
    else:
        foreign = np.zeros((4, 8), np.float32)
    with pytest.raises(ValueError, match="args.logits is on .*, the context on"):
        fill(ctx, "moe_router_fwd_args_t", {"logits": foreign})


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "fp64", "int32", "int64", "uint8"])
def test_dlpack(dtype):
    x = empty((5, 6), dtype)
    wrapped = type("Wrapped", (), {"__dlpack__": lambda self: x.__dlpack__()})()
    ours, theirs = _arrays.view("x", wrapped), _arrays.view("x", x)
    assert ours[:6] == theirs[:6]
    sliced = type("Wrapped", (), {"__dlpack__": lambda self: x[1:, 2:].__dlpack__()})()
    assert _arrays.view("x", sliced)[:6] == _arrays.view("x", x[1:, 2:])[:6]


@pytest.mark.cpu
def test_torch_on_the_cpu(ctx):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.zeros(4, 8, dtype=torch.bfloat16)[:, :6]
    view = _arrays.view("x", x)
    assert (view.pointer, view.dtype, view.shape, view.strides, view.device) == (x.data_ptr(), "bfloat16", (4, 6), (8, 1), -1)


def test_calls_that_do_not_exist(ctx):
    with pytest.raises(TypeError, match="no moe_router_sideways"):
        ctx.run("router_sideways", {}, {})
    with pytest.raises(TypeError, match="not a query"):
        ctx.query("router_fwd", {})
    with pytest.raises(TypeError, match="does not take"):
        ctx.run("dispatch_rows_max", {}, {})


def test_report(ctx):
    report = harness.report()
    assert harness.report_fields(report) == (0, 0, 0)
    fault = array(np.array([libmoe.FAULT_EXPERT_ID, 5, 99]))
    assert "99" in ctx.report_message(fault)


def test_the_harness_itself_can_fail(rng, guarded):
    reference = rng.standard_normal((4, 8))
    assert harness.relative_error(reference, reference) == 0
    for wrong in (np.full((4, 8), np.nan), reference + 1e-3, -reference):
        with pytest.raises(AssertionError):
            harness.assert_close(wrong, reference, "fp32")
    one = reference.copy()
    one[2, 3] = np.nan
    assert harness.relative_error(one, reference) == np.inf
    assert harness.poisoned(empty((2, 3), "bf16")).all() and harness.poisoned(empty(3, "int64")).all()
    out = guarded((4, 6), "fp16", pitch=8)
    out[...] = 0
    guarded.check()
    loose = harness.Guards()
    inner = loose((4, 6), "int32", pitch=8)
    buffer = loose.buffers[0][0]
    assert address(inner) % 16 == 0
    buffer[harness.Guards.ZONE // 4 + 7] = 0
    with pytest.raises(AssertionError, match="written outside"):
        loose.check()


@pytest.mark.parametrize("dtype", harness.NUMPY)
def test_arrays_of_the_harness(rng, dtype):
    values = rng.integers(0, 8, (3, 5))
    assert np.array_equal(host(array(values, dtype)), values)
    assert harness.poisoned(empty((3, 5), dtype)).all()
    assert _arrays.dtype_code(dtype) == getattr(libmoe, "DTYPE_" + dtype.upper())


@pytest.mark.parametrize("routing", harness.ROUTINGS)
def test_routings(rng, routing):
    ids = harness.ROUTINGS[routing](rng, 64, 16, 3)
    assert ids.shape == (64, 3)
    here = [row[(row >= 0) & (row < 16)] for row in ids]
    assert all(len(set(row)) == len(row) for row in here)


@pytest.mark.cpu
def test_what_fp32_cannot_hold_is_not_asked_of_it():
    harness.assert_close(np.zeros(1), np.array([5e-273]), "fp32")
    for out, reference, dtype in ((0.0, 1e-100, "fp64"), (1e-3, 5e-273, "fp32"), (0.0, 1e-30, "fp32"), (np.nan, 0.0, "fp32"), (0.0, np.inf, "bf16")):
        with pytest.raises(AssertionError):
            harness.assert_close(np.array([out]), np.array([reference]), dtype)
