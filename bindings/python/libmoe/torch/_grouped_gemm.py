"""Operator of the grouped GEMM, and gmm with the signature of the grouped_gemm package. R rows, E groups, N and K the sides."""

import torch

from ..grouped_gemm import check_batch_sizes
from ._call import DTYPES, Operation, fits, rows
from ._define import autocast, no_second_derivative, operator
from ._expert_mlp import IN_OUT, stored

FORWARD, BACKWARD = Operation("grouped_gemm_fwd"), Operation("grouped_gemm_bwd")
GROUPS = "Tensor? group_offsets, Tensor? group_sizes"


def gmm(a, b, batch_sizes, trans_b=False):
    """c [R, N]: rows of a [R, K], batch_sizes[e] for each expert, times b[e], [E, K, N] or with trans_b [E, N, K].

    batch_sizes int64[E] on the CPU or with a; on the GPU it is never read by the host.
    """
    for name, tensor in (("a", a), ("b", b), ("batch_sizes", batch_sizes)):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"gmm: {name} is {type(tensor).__name__}: not a tensor")
    shapes = f"a {list(a.shape)}, b {list(b.shape)}, batch_sizes {list(batch_sizes.shape)}, trans_b={trans_b}"
    if (a.dim(), b.dim(), batch_sizes.dim()) != (2, 3, 1):
        raise ValueError(f"gmm takes a [R, K], b [E, K, N], batch_sizes [E]; got {shapes}")
    if a.shape[1] != b.shape[2 if trans_b else 1] or batch_sizes.shape[0] != b.shape[0]:
        raise ValueError(f"gmm: {shapes} do not fit")
    if batch_sizes.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"gmm: batch_sizes has dtype {batch_sizes.dtype}; it must be int64 or int32")
    a, b = autocast(a, b)
    if a.dtype != b.dtype:
        raise ValueError(f"gmm: a has dtype {a.dtype}, b {b.dtype}")
    if batch_sizes.device.type == "cpu" and not torch.compiler.is_compiling():
        check_batch_sizes(batch_sizes.tolist(), a.shape[0])
    sizes = batch_sizes.to(a.device, torch.int64, non_blocking=True).contiguous()
    return grouped_gemm(a, b, group_sizes=sizes, b_layout=0 if trans_b else IN_OUT)


def grouped_gemm(a, b, group_offsets=None, group_sizes=None, bias=None, b_layout=0):
    """c [R, N] = a [R, K] op(b_g) + bias [E, N]; b [E, N, K], or [E, K, N] with b_layout=libmoe.WEIGHT_IN_OUT.

    Rows behind the last group are undefined, in c and in the gradient of a.
    """
    a, b, bias = autocast(a, b, bias)
    b, b_layout = stored(b, b_layout)
    return torch.ops.libmoe.grouped_gemm.default(a, b, bias, group_offsets, group_sizes, b_layout)


@operator(f"grouped_gemm(Tensor a, Tensor b, Tensor? bias, {GROUPS}, int b_layout) -> Tensor")
def forward(a, b, bias, group_offsets, group_sizes, b_layout):
    desc = _desc(a, b, b_layout)
    fits("a", a, a.shape[0], desc["k"])
    fits("bias", bias, desc["num_groups"], desc["n"])
    fits("group_offsets", group_offsets, desc["num_groups"] + 1)
    fits("group_sizes", group_sizes, desc["num_groups"])
    a, b = rows(a), rows(b)
    c = fake(a, b, bias, group_offsets, group_sizes, b_layout)
    FORWARD(a.device, desc, a=a, b=b, bias=rows(bias), c=c, group_offsets=group_offsets, group_sizes=group_sizes)
    return c


@forward.fake
def fake(a, b, bias, group_offsets, group_sizes, b_layout):
    return a.new_empty(a.shape[0], b.shape[2 if b_layout == IN_OUT else 1])


def _setup(ctx, inputs, output):
    *tensors, ctx.b_layout = inputs
    ctx.save_for_backward(*tensors)


@forward.backward(_setup)
def _(ctx, dc):
    needs = list(ctx.needs_input_grad[:3])
    grads = torch.ops.libmoe.grouped_gemm_backward.default(dc, *ctx.saved_tensors, ctx.b_layout, needs)
    return *(grad if needed else None for grad, needed in zip(grads, needs)), None, None, None


@operator(f"grouped_gemm_backward(Tensor dc, Tensor a, Tensor b, Tensor? bias, {GROUPS}, int b_layout, bool[] needs)"
          " -> (Tensor, Tensor, Tensor)")
def backward(dc, a, b, bias, group_offsets, group_sizes, b_layout, needs):
    """da, db, dbias; those that are not needed are empty."""
    dc, a, b = rows(dc), rows(a), rows(b)
    grads = _grads(a, b, bias, needs)
    da, db, dbias = (grad if needed else None for grad, needed in zip(grads, needs))
    BACKWARD(a.device, _desc(a, b, b_layout), dc=dc, a=a, b=b, da=da, db=db, dbias=dbias, group_offsets=group_offsets,
             group_sizes=group_sizes)
    return grads


@backward.fake
def _(dc, a, b, bias, group_offsets, group_sizes, b_layout, needs):
    return _grads(a, b, bias, needs)


no_second_derivative("grouped_gemm_backward")


def _grads(a, b, bias, needs):
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) if needed else a.new_empty(0)
        for t, needed in zip((a, b, bias), needs)
    )


def _desc(a, b, b_layout):
    n, k = (b.shape[2], b.shape[1]) if b_layout == IN_OUT else (b.shape[1], b.shape[2])
    return {"dtype": DTYPES[a.dtype], "rows_max": a.shape[0], "n": n, "k": k, "num_groups": b.shape[0], "b_layout": b_layout}
