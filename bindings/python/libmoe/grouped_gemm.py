"""Grouped GEMM: rows sorted by group against one matrix a group.

R rows, E groups, N and K the matrices' sides. `b` and `db` may be lists of E arrays (or None): by pointers.
"""

from typing import Any, NamedTuple

import numpy as np

from . import _arrays, _context
from ._calls import Call, dtype_of, first
from ._header import constants

OUT_IN, IN_OUT = constants["MOE_WEIGHT_OUT_IN"], constants["MOE_WEIGHT_IN_OUT"]


class GroupedGemmGrads(NamedTuple):
    da: Any
    db: Any
    dbias: Any


def gmm(a, b, batch_sizes, trans_b=False):
    """c[R, N]: batch_sizes[e] rows of a[R, K] for each expert times b[e], [E, K, N], with trans_b [E, N, K].

    The signature of the grouped_gemm package. batch_sizes int64[E] or int32[E], on the CPU or beside a: on a GPU the host
    never reads it. PyTorch's tensors carry gradients.
    """
    if _arrays.array_library(a) is _arrays.Torch:
        from .torch import gmm

        return gmm(a, b, batch_sizes, trans_b)
    dtype = _arrays.view("batch_sizes", batch_sizes).dtype
    if dtype not in ("int64", "int32"):
        raise TypeError(f"gmm: batch_sizes has dtype {dtype}; it must be int64 or int32")
    if isinstance(batch_sizes, np.ndarray):
        check_batch_sizes(batch_sizes.ravel().tolist(), a.shape[0])
    sizes = batch_sizes if dtype == "int64" else batch_sizes.astype("int64")
    layout = OUT_IN if trans_b else IN_OUT
    return grouped_gemm_fwd(_context.of_device(_arrays.view("a", a).device), a, b, group_sizes=sizes, b_layout=layout)


def check_batch_sizes(sizes, rows):
    """ValueError unless so many rows hold the groups; for sizes that the host can read."""
    if min(sizes, default=0) < 0 or sum(sizes) > rows:
        raise ValueError(f"gmm: batch_sizes are {min(sizes)} or more, {sum(sizes)} together; a has {rows} rows for them")


def grouped_gemm_fwd(ctx, a, b, group_offsets=None, *, group_sizes=None, bias=None, row_index=None, b_layout=OUT_IN,
                     c=True, c_mode=None, c_dtype=None, report=None, stream=None, **options):
    """c[R, N] = alpha a[R, K] op(b_g) (+ bias[E, N]).

    b is [E, N, K], or [E, K, N] with b_layout=libmoe.WEIGHT_IN_OUT. Groups by group_offsets int64[E + 1] or
    group_sizes int64[E]. With row_index[R], a has any number of rows. Options: alpha, beta, math.
    """
    call = Call(ctx, "grouped_gemm_fwd")
    _takes(call, a, row_index, group_offsets, group_sizes)
    call.takes(_b_shape(b_layout), b=b)
    call.takes("E N", bias=bias)
    call.gives("R N", c_dtype, c=c)
    call.run(_desc(call, a, b_layout, options), stream, a_rows=call["M"], c_mode=c_mode, report=report)
    return call.args["c"]


def grouped_gemm_bwd(ctx, dc, a=None, b=None, group_offsets=None, *, group_sizes=None, row_index=None, b_layout=OUT_IN,
                     da=None, db=None, dbias=None, da_mode=None, db_mode=None, dbias_mode=None, da_dtype=None,
                     db_dtype=None, report=None, stream=None, **options):
    """GroupedGemmGrads: da[R, K] by default when b is given, db in b's layout when a is given, dbias[E, N] on request.

    db_mode="add" accumulates, for example into an fp32 main_grad given as db.
    """
    call = Call(ctx, "grouped_gemm_bwd")
    call.takes("R N", dc=dc)
    _takes(call, a, row_index, group_offsets, group_sizes)
    call.takes(_b_shape(b_layout), b=b)
    da = b is not None if da is None else da
    db = a is not None if db is None else db
    # Outputs that the caller brings may bind what no input has.
    for shape, array in (("R K", da), (_b_shape(b_layout), db)):
        if not isinstance(array, bool):
            call.takes(shape, given=array)
    call.args.pop("given", None)
    call.gives("R K", da_dtype, da=da)
    call.gives(_b_shape(b_layout), db_dtype, db=db)
    call.gives("E N", db_dtype, dbias=dbias)
    dtype = dtype_of(first(b) if a is None and b is not None else dc if a is None else a)
    desc = {**_desc(call, dc, b_layout, options), "dtype": dtype}
    call.run(desc, stream, a_rows=call.sizes.get("M", 0), da_mode=da_mode, db_mode=db_mode, dbias_mode=dbias_mode,
             report=report)
    return call.collect(GroupedGemmGrads)


def _b_shape(layout):
    return "E N K" if layout == OUT_IN else "E K N"


def _takes(call, a, row_index, group_offsets, group_sizes):
    call.takes("M K" if row_index is not None else "R K", a=a)
    call.takes("R", row_index=row_index)
    call.sizes["M"] = call.sizes.get("M", call.sizes.get("R"))
    call.takes("E", group_sizes=group_sizes)
    if group_offsets is not None:
        call.sizes.setdefault("E", group_offsets.shape[0] - 1)
        call.sizes["E+1"] = call["E"] + 1
    call.takes("E+1", group_offsets=group_offsets)


def _desc(call, a, layout, options):
    sizes = {"rows_max": call["R"], "n": call["N"], "k": call.sizes.get("K", 1), "num_groups": call["E"]}
    return {"dtype": dtype_of(a), **sizes, "b_layout": layout, **options}
