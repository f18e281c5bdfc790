"""Builds a libcuda.so.1 that runs kernels on the host: tests/mock/cuda.c, the kernels behind emulator.h, and their scheduler.

    python tests/emulator/build.py FOLDER

Sources are taken as they are, but for what no C++ compiler reads: instructions in assembler, dynamic shared memory.
"""

import re
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "kernels"
# What the router's GEMM, the dispatch operations, grouped GEMM and the expert MLP launch on Hopper in bf16, the router in
# its common cases, and Sinkhorn.
SOURCES = [
    "activation", "decode_bf16", "dispatch_combine", "dispatch_fwd", "dispatch_plan", "dispatch_plan_ids",
    "dispatch_sort", "expert_mlp", "grouped_gemm_bias", "hopper_gate_dweight", "hopper_gate_dx", "hopper_gate_fwd",
    "hopper_glu_bf16", "hopper_glu_bwd_bf16",
    "hopper_glu_gathered_bf16", "hopper_glu_pairs_bf16", "hopper_glu_single_bf16", "hopper_linear_bf16",
    "hopper_linear_gathered_bf16", "hopper_maps", "hopper_wgrad_ahead_bf16", "hopper_wgrad_bf16", "router_join", "router_logits_fwd",
    "router_quick_bwd", "router_quick_bwd_wide", "router_quick_fwd", "router_quick_fwd_wide", "router_split",
    "sinkhorn", "sinkhorn_step",
]
REWRITES = [
    (r"#include <(cooperative_groups|cuda_bf16|cuda_fp16)\.h>\n", ""),
    (r'#include "(\.\./)+include/moe\.h"', f'#include "{ROOT}/include/moe.h"'),
    (r"#pragma unroll.*\n", "\n"),
    (r"(?m)^extern __shared__ .*?(\w+) (\w+)\[\];", r"#define \2 (reinterpret_cast<\1 *>(emulator::current->block->base()))"),
    (r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];", r"\1 *const \2 = reinterpret_cast<\1 *>(emulator::current->block->base());"),
    (r"__shared__ alignas\((\d+)\)", r"alignas(\1) static"),
    # Assembler that only holds the optimiser back, then what remains of it outside the shelves of instructions.
    (r'asm volatile\("" [^;]*\);', ";"),
    (r'asm volatile\("ld\.global\.L1::no_allocate[\s\S]*?\);', "memcpy(bits, reinterpret_cast<const uint32_t *>(data) + word, 16);"),
    (r'asm volatile\(\s*"cp\.async\.bulk\.tensor\.3d[^;]*?L2::cache_hint[\s\S]*?\);', "hopper::copy_box(to, map, barrier, x, y, z);"),
    (r'asm volatile\("cp\.async\.cg\.shared\.global\.L2::cache_hint[\s\S]*?\);', "cp_async_16(to, from, valid);"),
    (r'asm volatile\("bar\.sync (\d), %0;" ::"n"\((\w+)\) : "memory"\);', r"emulator::wait_named(\1, \2);"),
    (r'asm\("ex2\.approx[^;]*;[^;]*;', "result = exp2f(x);"),
    (r'asm\("rcp\.approx[^;]*;[^;]*;', "result = 1 / x;"),
    (r'asm\("lg2\.approx[^;]*;[^;]*;', "result = log2f(x);"),
    (r'asm\("max\.NaN\.f32[^;]*;[^;]*;', "result = a != a || b != b ? NAN : fmaxf(a, b);"),
    (r'asm\("prmt\.b32[^;]*;[^;]*;', "signs = (pair >> 15 & 0x10001) * 0xffff;"),
    (r'asm\("createpolicy[^;]*;[^;]*;', "policy = 0;"),
]


def headers():
    """The folder of CUDA's own headers, or None. Those of the compiler's wheel are needed, too, not torch's alone."""
    found = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13" / "include"
    return found if (found / "cuda_bf16.h").exists() and (found / "crt" / "host_defines.h").exists() else None


def rewrite(folder):
    for source in [*KERNELS.glob("*.cu*"), *KERNELS.glob("params/*.h")]:
        text = source.read_text()
        stand_in = HERE / "instructions" / source.name
        if source.name == "hopper_wgmma.cuh":
            text = text[:text.index("// Before the first wgmma")] + stand_in.read_text()
        elif stand_in.exists():
            text = stand_in.read_text()
        for pattern, replacement in REWRITES:
            text = re.sub(pattern, replacement, text)
        target = folder / source.relative_to(KERNELS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


def build(folder):
    """The folder with libcuda.so.1, for LD_LIBRARY_PATH."""
    folder = Path(folder)
    rewrite(folder / "kernels")
    flags = ["-O1", "-w", "-Wno-psabi", "-fPIC", "-std=c++17"]
    cuda = [*flags, "-fpermissive", "-I", headers(), "-I", HERE, "-include", "emulator.h", "-x", "c++"]
    commands = [["c++", *cuda, "-c", folder / "kernels" / f"{stem}.cu", "-o", folder / f"{stem}.o"] for stem in SOURCES]
    commands.append(["c++", *flags, "-I", headers(), "-c", HERE / "scheduler.cpp", "-o", folder / "scheduler.o"])
    commands.append(["cc", "-O1", "-w", "-fPIC", "-c", ROOT / "tests" / "mock" / "cuda.c", "-o", folder / "cuda.o"])
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda command: subprocess.run(command, check=True), commands))
    objects = sorted(folder.glob("*.o"))
    subprocess.run(["c++", "-shared", "-o", folder / "libcuda.so.1", *objects, "-ldl", "-Wl,-z,now"], check=True)
    return folder


if __name__ == "__main__":
    print(build(sys.argv[1]))
