"""DeepGEMM (wheel sgl-deep-gemm): it compiles kernels with the machine's nvcc at the first call, into DG_JIT_CACHE_DIR.

Rows of a group begin at a multiple of its alignment: padded copies are made beforehand and not timed.
"""

from __future__ import annotations

from .policy import load, require_same

NAME = "DeepGEMM"


def library():
    def importing():
        import deep_gemm

        return deep_gemm

    return load(NAME, importing)


def padded(counts, alignment: int):
    """(rows of each group with padding, place of each real row, group of each row or -1) for `counts` rows a group."""
    import torch

    sizes = (counts + alignment - 1) // alignment * alignment
    starts = sizes.cumsum(0) - sizes
    group = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    within = torch.arange(len(group), device=counts.device) - (counts.cumsum(0) - counts)[group]
    places = starts[group] + within
    layout = torch.full((int(sizes.sum()),), -1, device=counts.device, dtype=torch.int32)
    layout[places] = group.int()
    return sizes, places, layout


def grouped(a, b, counts, across: bool, expected):
    """The call of C[M, n] = A[M, k] B of each group, B [E, n, k] or, where `across`, [E, k, n]."""
    import torch

    deep_gemm = library()
    _, places, layout = padded(counts, deep_gemm.get_mk_alignment_for_contiguous_layout())
    a_padded = torch.empty(len(layout), a.shape[1], device=a.device, dtype=a.dtype).normal_()
    a_padded[places] = a
    c = torch.empty(len(layout), expected.shape[1], device=a.device, dtype=a.dtype)
    kernel = deep_gemm.m_grouped_bf16_gemm_nn_contiguous if across else deep_gemm.m_grouped_bf16_gemm_nt_contiguous

    def call():
        kernel(a_padded, b, c, layout)
        return c

    call()
    require_same(NAME, c[places], expected)
    return call


def wgrad(dy, x, counts, expected):
    """The call of dW[E, n, k] += dYᵀ X of each group, dW in fp32."""
    import torch

    deep_gemm = library()
    sizes, places, layout = padded(counts, deep_gemm.get_mk_alignment_for_contiguous_layout())
    dy_padded, x_padded = (torch.zeros(len(layout), t.shape[1], device=t.device, dtype=t.dtype) for t in (dy, x))
    dy_padded[places], x_padded[places] = dy, x
    on_host, on_device = sizes.tolist(), sizes.int()
    dw = torch.zeros(expected.shape, device=dy.device)

    def call():
        deep_gemm.k_grouped_bf16_gemm_tn_contiguous(dy_padded, x_padded, dw, on_host, on_device, c=dw)

    call()
    require_same(NAME, dw, expected)
    return call
