"""Operators of dispatch and combine: ids or a mask to a plan, tokens to rows and back.

T tokens, d hidden size, E experts, K slots a token, R rows. The maps of a plan are tensors, so that many calls share them.
"""

from typing import NamedTuple

import torch

from ._call import DTYPES, Operation, fits, rows
from ._define import no_second_derivative, operator

PLAN = Operation("dispatch_plan")
DISPATCH, DISPATCH_BWD = Operation("dispatch_fwd"), Operation("dispatch_bwd")
COMBINE, COMBINE_BWD = Operation("combine_fwd"), Operation("combine_bwd")
MAPS = "Tensor group_offsets, Tensor token_of_row, Tensor slot_of_row, Tensor row_of_slot, Tensor? slot_offsets"


class Plan(NamedTuple):
    """Where each slot's row lies: see moe_dispatch_plan. slot_offsets is None where token t has slots t*K ... t*K + K-1."""

    # int64[E + 1] and int64[E].
    group_offsets: torch.Tensor
    group_sizes: torch.Tensor
    row_of_slot: torch.Tensor
    slot_of_row: torch.Tensor
    token_of_row: torch.Tensor
    slot_offsets: torch.Tensor | None
    num_tokens: int
    top_k: int
    # R: at least as many rows as there are; rows beyond group_offsets[E] are undefined.
    rows_max: int


def maps_of(plan):
    """The plan's maps as operators take them; no property of Plan, which torch.compile of 2.8 does not trace."""
    return plan.group_offsets, plan.token_of_row, plan.slot_of_row, plan.row_of_slot, plan.slot_offsets


def make_plan(ids, num_experts, rows_max=None):
    """The Plan of ids [T, K] (outside 0 ... E-1: an empty slot), or of a mask bool [T, E] with at most rows_max rows."""
    if ids.dim() != 2:
        raise ValueError(f"ids has shape {list(ids.shape)}; it must be [T, K], a mask [T, E]")
    if ids.dtype in (torch.bool, torch.uint8):
        if ids.shape[-1] != num_experts:
            raise ValueError(f"the mask has shape {list(ids.shape)}; it must be [T, E] = [{ids.shape[0]}, {num_experts}]")
        rows_max = ids.numel() if rows_max is None else rows_max
        *maps, slot_offsets = torch.ops.libmoe.dispatch_plan_mask.default(ids.contiguous(), rows_max)
        return Plan(*maps, slot_offsets, ids.shape[0], num_experts, rows_max)
    maps = torch.ops.libmoe.dispatch_plan.default(ids.contiguous(), num_experts)
    return Plan(*maps, None, ids.shape[0], ids.shape[1], ids.shape[0] * ids.shape[1])


def dispatch(x, plan):
    """rows [R, d] of x [T, d]."""
    return torch.ops.libmoe.dispatch.default(x, *maps_of(plan), plan.top_k)


def combine(rows, plan, weights=None):
    """y [T, d] = sum of a token's rows [R, d] times weights [T, K]; without weights the plain sum."""
    return torch.ops.libmoe.combine.default(rows, weights, *maps_of(plan), plan.num_tokens, plan.top_k)


# ---------------------------------------------------------------- plan


@operator("dispatch_plan(Tensor ids, SymInt num_experts) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
def dispatch_plan(ids, num_experts):
    tokens, top_k = ids.shape
    maps = fake_plan(ids, num_experts)
    _run_plan(maps, {"num_tokens": tokens, "num_experts": num_experts, "top_k": top_k, "rows_max": tokens * top_k}, ids=ids)
    return maps


@dispatch_plan.fake
def fake_plan(ids, num_experts):
    new = ids.new_empty
    slots = ids.shape[0] * ids.shape[1]
    groups = new(num_experts + 1, dtype=torch.int64), new(num_experts, dtype=torch.int64)
    return *groups, *(new(slots, dtype=torch.int32) for _ in range(3))


@operator("dispatch_plan_mask(Tensor mask, SymInt rows_max) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
def dispatch_plan_mask(mask, rows_max):
    tokens, experts = mask.shape
    maps = fake_plan_mask(mask, rows_max)
    # There is room for T*E slots, and the library writes those that there are.
    maps[2].fill_(-1)
    desc = {"num_tokens": tokens, "num_experts": experts, "top_k": experts, "rows_max": rows_max}
    _run_plan(maps, desc, byte_mask=mask.view(torch.uint8), slot_offsets=maps[5])
    return maps


@dispatch_plan_mask.fake
def fake_plan_mask(mask, rows_max):
    new = mask.new_empty
    tokens, experts = mask.shape
    groups = new(experts + 1, dtype=torch.int64), new(experts, dtype=torch.int64)
    slots = new(tokens * experts, dtype=torch.int32)
    return *groups, slots, *(new(n, dtype=torch.int32) for n in (rows_max, rows_max, tokens + 1))


def _run_plan(maps, desc, **inputs):
    names = ("group_offsets", "group_sizes", "row_of_slot", "slot_of_row", "token_of_row")
    PLAN(maps[0].device, desc, **inputs, **dict(zip(names, maps)))


# ---------------------------------------------------------------- dispatch


@operator(f"dispatch(Tensor x, {MAPS}, SymInt top_k) -> Tensor")
def dispatch_fwd(x, group_offsets, token_of_row, slot_of_row, row_of_slot, slot_offsets, top_k):
    x = rows(x)
    out = x.new_empty(token_of_row.shape[0], x.shape[1])
    DISPATCH(x.device, _desc(x, x.shape[0], token_of_row, group_offsets, top_k), x=x, rows=out, token_of_row=token_of_row,
             group_offsets=group_offsets, slot_of_row=slot_of_row, row_of_slot=row_of_slot, slot_offsets=slot_offsets)
    return out


@dispatch_fwd.fake
def _(x, group_offsets, token_of_row, slot_of_row, row_of_slot, slot_offsets, top_k):
    return x.new_empty(token_of_row.shape[0], x.shape[1])


def _setup_dispatch(ctx, inputs, output):
    x, *maps, ctx.top_k = inputs
    ctx.num_tokens = x.shape[0]
    ctx.save_for_backward(*maps)


@dispatch_fwd.backward(_setup_dispatch)
def _(ctx, drows):
    dx = torch.ops.libmoe.dispatch_backward.default(drows, *ctx.saved_tensors, ctx.num_tokens, ctx.top_k)
    return dx, *[None] * 6


@operator(f"dispatch_backward(Tensor drows, {MAPS}, SymInt num_tokens, SymInt top_k) -> Tensor")
def dispatch_bwd(drows, group_offsets, token_of_row, slot_of_row, row_of_slot, slot_offsets, num_tokens, top_k):
    drows = rows(drows)
    dx = drows.new_empty(num_tokens, drows.shape[1])
    DISPATCH_BWD(drows.device, _desc(drows, num_tokens, token_of_row, group_offsets, top_k), drows=drows,
                 row_of_slot=row_of_slot, slot_offsets=slot_offsets, dx=dx)
    return dx


@dispatch_bwd.fake
def _(drows, group_offsets, token_of_row, slot_of_row, row_of_slot, slot_offsets, num_tokens, top_k):
    return drows.new_empty(num_tokens, drows.shape[1])


no_second_derivative("dispatch_backward")

# ---------------------------------------------------------------- combine


@operator(f"combine(Tensor rows, Tensor? weights, {MAPS}, SymInt num_tokens, SymInt top_k) -> Tensor")
def combine_fwd(rows_, weights, group_offsets, token_of_row, slot_of_row, row_of_slot, slot_offsets, num_tokens, top_k):
    fits("rows", rows_, token_of_row.shape[0], rows_.shape[1])
    if weights is not None and weights.numel() != num_tokens * top_k:
        fits("weights", weights, num_tokens, top_k)
    rows_ = rows(rows_)
    y = rows_.new_empty(num_tokens, rows_.shape[1])
    COMBINE(y.device, _desc(y, num_tokens, token_of_row, group_offsets, top_k), rows=rows_, weights=_slots(weights),
            row_of_slot=row_of_slot, slot_offsets=slot_offsets, y=y)
    return y


@combine_fwd.fake
def _(rows_, weights, group_offsets, token_of_row, slot_of_row, row_of_slot, slot_offsets, num_tokens, top_k):
    return rows_.new_empty(num_tokens, rows_.shape[1])


def _setup_combine(ctx, inputs, output):
    rows_, weights, *maps, ctx.num_tokens, ctx.top_k = inputs
    ctx.save_for_backward(rows_ if ctx.needs_input_grad[1] else None, weights, *maps)


@combine_fwd.backward(_setup_combine)
def _(ctx, dy):
    rows_, weights, *maps = ctx.saved_tensors
    drows, dweights = torch.ops.libmoe.combine_backward.default(dy, rows_, weights, *maps, ctx.top_k)
    return drows, dweights if ctx.needs_input_grad[1] else None, *[None] * 7


@operator(f"combine_backward(Tensor dy, Tensor? rows, Tensor? weights, {MAPS}, SymInt top_k) -> (Tensor, Tensor)")
def combine_bwd(dy, rows_, weights, group_offsets, token_of_row, slot_of_row, row_of_slot, slot_offsets, top_k):
    """Without rows there is no gradient of the weights: it is empty."""
    dy = rows(dy)
    drows = dy.new_empty(token_of_row.shape[0], dy.shape[1])
    wanted = rows_ is not None and weights is not None
    dweights = torch.empty_like(weights, memory_format=torch.contiguous_format) if wanted else dy.new_empty(0)
    COMBINE_BWD(dy.device, _desc(dy, dy.shape[0], token_of_row, group_offsets, top_k), dy=dy, rows=rows(rows_),
                weights=_slots(weights), token_of_row=token_of_row, slot_of_row=slot_of_row, group_offsets=group_offsets,
                row_of_slot=row_of_slot, slot_offsets=slot_offsets, drows=drows, dweights=_slots(dweights) if wanted else None)
    return drows, dweights


@combine_bwd.fake
def _(dy, rows_, weights, group_offsets, token_of_row, slot_of_row, row_of_slot, slot_offsets, top_k):
    wanted = rows_ is not None and weights is not None
    dweights = torch.empty_like(weights, memory_format=torch.contiguous_format) if wanted else dy.new_empty(0)
    return dy.new_empty(token_of_row.shape[0], dy.shape[1]), dweights


no_second_derivative("combine_backward")


def _desc(like, num_tokens, token_of_row, group_offsets, top_k):
    return {"dtype": DTYPES[like.dtype], "num_tokens": num_tokens, "hidden_size": like.shape[1], "top_k": top_k,
            "rows_max": token_of_row.shape[0], "num_groups": group_offsets.shape[0] - 1}


def _slots(weights):
    """A weight a slot, as the library reads it."""
    return None if weights is None else weights.reshape(-1)
