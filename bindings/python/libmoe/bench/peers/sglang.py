"""SGLang's Triton fused-MoE kernels: their source file and tuned tables, in the folder PEER_SRC/sglang_moe.

The file's other imports belong to a server; stand-ins with the answers of an NVIDIA GPU take their place, and its public functions
are called.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import json
import os
import sys
import types
from pathlib import Path

from .policy import Absent, require_same

NAME = "SGLang"
KERNELS, SMALL_SORT, CUDA_SORT = "fused_moe_triton_kernels.py", "moe_align_small_numel.py", "moe_align_kernel.cu"


def folder() -> Path:
    return Path(os.environ.get("PEER_SRC", ".peers/src")) / "sglang_moe"


class StandIns:
    """Finds any module below `sglang`: its functions answer as on an NVIDIA GPU of Hopper's generation or later."""

    def __init__(self, programmatic_launch: bool):
        self.answers = {"is_cuda": True, "is_sm90_supported": True, "is_arch_support_pdl": programmatic_launch}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sglang":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: self.attribute(name)
        return module

    def exec_module(self, module):
        pass

    def attribute(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "envs":
            return _Off()
        return lambda *_, **__: self.answers.get(name, False)


class _Off:
    """Any attribute's get() is False."""

    def __getattr__(self, name):
        return self

    def get(self):
        return False


@functools.lru_cache(maxsize=None)
def source(file: str, programmatic_launch: bool):
    """The file as a module of its own, with or without programmatic dependent launches."""
    path = folder() / file
    if not path.exists():
        raise Absent(f"{NAME} is not there: no {file} in PEER_SRC/sglang_moe")
    finder = StandIns(programmatic_launch)
    real = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "sglang"}
    for name in real:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        name = f"libmoe_bench_{path.stem}_{int(programmatic_launch)}"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # Triton finds a kernel's source by its module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "sglang"]:
            del sys.modules[name]
        sys.modules.update(real)


def config(tokens: int, E: int, f: int) -> tuple[dict, str]:
    """The tuned table's entry of the nearest number of tokens, of this width or the nearest one; and its name."""
    import torch

    device = torch.cuda.get_device_name().replace(" ", "_")
    widths = {}
    for path in folder().glob(f"E={E},N=*,device_name={device}.json"):
        widths[int(path.name.split("N=")[1].split(",")[0])] = path
    if not widths:
        small = tokens <= E  # what SGLang does without a table
        return dict(BLOCK_SIZE_M=16, BLOCK_SIZE_N=32, BLOCK_SIZE_K=64, GROUP_SIZE_M=1) if small else dict(
            BLOCK_SIZE_M=64, BLOCK_SIZE_N=64, BLOCK_SIZE_K=32, GROUP_SIZE_M=8), "default"
    width = min(widths, key=lambda w: abs(w - f))
    table = {int(key): value for key, value in json.loads(widths[width].read_text()).items() if key.isdigit()}
    return dict(table[min(table, key=lambda m: abs(m - tokens))]), f"table of N={width}"


def align_by_torch(ids, block: int, E: int):
    """(slots in blocks of one expert each, padded with T*K; the expert of each block; how many slots) by torch ops alone."""
    import torch

    flat = ids.reshape(-1)
    slots = flat.numel()
    room = min(slots, E) * (block - 1) + slots
    room = -(-room // block) * block
    experts = torch.arange(E, device=flat.device, dtype=flat.dtype)
    chosen = (flat[None, :] == experts[:, None]).int()
    counts = chosen.sum(1)
    ends = ((counts + block - 1) // block * block).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    # The rank of a slot in its expert: how many slots before it chose the same.
    rank = (chosen.cumsum(1) * chosen).sum(0) - 1
    places = starts[flat.long()] + rank
    order = torch.full((room,), slots, device=flat.device, dtype=torch.int32)
    order.scatter_(0, places, torch.arange(slots, device=flat.device, dtype=torch.int32))
    blocks = torch.searchsorted(ends, torch.arange(0, room, block, device=flat.device), right=True)
    return order, blocks.clamp_(max=E - 1).int(), ends[-1:].int()


def align_small(ids, block: int, E: int):
    """The same by SGLang's Triton kernel for few slots, where its file is there."""
    import torch

    module = source(SMALL_SORT, False)
    slots = ids.numel()
    if slots > module.SMALL_NUMEL_LIMIT:
        raise Absent(f"SGLang's small sort is for at most {module.SMALL_NUMEL_LIMIT} slots")
    new = lambda size: torch.empty(size, device=ids.device, dtype=torch.int32)
    order, blocks, total = new(slots * block), new(slots), new(1)
    # One bucket more than experts: id -1 has its own.
    module.moe_align_small_numel(ids, E + 1, block, order, blocks, total)
    return order, blocks, total


@functools.lru_cache(maxsize=None)
def cuda_sort():
    """SGLang's CUDA sort, built by the machine's nvcc from its file and headers, where they are there with tvm_ffi; else why not."""
    path = folder() / CUDA_SORT
    if not path.exists():
        return None, f"no {CUDA_SORT} in PEER_SRC/sglang_moe"
    try:
        import torch
        import tvm_ffi.cpp

        major, minor = torch.cuda.get_device_capability()
        export = "TVM_FFI_DLL_EXPORT_TYPED_FUNC(sort, (sglang::MoeAlignBlockSizeKernel<int32_t, false, false, false>::run));"
        library = tvm_ffi.cpp.load_inline(
            "sglang_moe_align", cuda_sources=f'#include <tvm/ffi/function.h>\n#include "{path.resolve()}"\n{export}\n',
            extra_include_paths=[str(path.parent / "include")],
            extra_cuda_cflags=["-std=c++20", "-O3", "--expt-relaxed-constexpr", f"-DSGL_CUDA_ARCH={100 * major + 10 * minor}"])
        return library, None
    except Exception as error:
        print(f"SGLang's CUDA sort is not built: {type(error).__name__}: {str(error)[-600:]}", flush=True)
        return None, str(error)


def align_cuda(ids, block: int, E: int):
    """The same by SGLang's CUDA kernels."""
    import torch

    library, reason = cuda_sort()
    if library is None:
        raise Absent(reason)
    slots = ids.numel()
    room = slots * block if slots < E + 1 else slots + (E + 1) * (block - 1)
    room = -(-room // 4) * 4
    new = lambda size: torch.empty(size, device=ids.device, dtype=torch.int32)
    order, blocks, total, sums = new(room), new(-(-room // block)), new(1), new(E + 2)
    library.sort(ids, E + 1, block, order, blocks, total, sums, True)
    return order, blocks, total


SORTS = {"by torch": align_by_torch, "by SGLang's Triton": align_small, "by SGLang's CUDA": align_cuda}


def forward(made, x, programmatic_launch: bool):
    """(align, layer): what sorts the ids, and what computes the layer from that."""
    import torch
    import triton.language as tl

    module = source(KERNELS, programmatic_launch)
    shape, ids, weights = made.shape, made.ids, made.weights
    chosen, _ = config(shape.T, shape.E, shape.f)
    new = lambda *size: torch.empty(size, device=x.device, dtype=x.dtype)
    dense = dict(
        compute_type=tl.bfloat16, use_fp8_w8a8=False, use_int8_w8a8=False, use_int8_w8a16=False, use_int4_w4a16=False,
        per_channel_quant=False, filter_expert=False)

    def layer(order, blocks, total):
        h, a, rows, y = new(shape.rows, 2 * shape.f), new(shape.rows, shape.f), new(shape.T, shape.K, shape.d), new(shape.T, shape.d)
        sort = (weights, ids, order, blocks, total)
        module.invoke_fused_moe_kernel(x, made.w1, None, h, None, None, None, *sort, False, shape.K, chosen, **dense)
        module.act_and_mul_triton(h, a, chosen)
        module.invoke_fused_moe_kernel(a, made.w2, None, rows, None, None, None, *sort, True, 1, chosen, **dense)
        if shape.K == 2:
            torch.add(rows[:, 0], rows[:, 1], out=y)
        else:
            module.moe_sum_reduce_triton(rows, y, 1.0)
        return y

    return chosen["BLOCK_SIZE_M"], layer


def variants(made, x, expected) -> dict:
    """Calls by name: with the alignment computed beforehand, and by each sort that is there."""
    try:
        # As SGLang launches its kernels on Hopper: the next one begins before the last has ended.
        return calls_of(made, x, expected, True)
    except Absent:
        raise
    except Exception as error:
        print(f"{NAME} with programmatic launches: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return calls_of(made, x, expected, False)


def calls_of(made, x, expected, programmatic_launch: bool) -> dict:
    block, layer = forward(made, x, programmatic_launch)
    calls, E = {}, made.shape.E
    for how, sort in SORTS.items():
        try:
            require_same(NAME, layer(*sort(made.ids, block, E)), expected)
        except Absent:
            if sort is align_by_torch:
                raise
            continue
        calls[f"aligned {how}"] = functools.partial(sorted_layer, layer, sort, made.ids, block, E)
    calls["aligned before"] = functools.partial(layer, *align_by_torch(made.ids, block, E))
    return calls


def sorted_layer(layer, sort, ids, block: int, E: int):
    return layer(*sort(ids, block, E))
