"""Operator of the expert MLP: gather, fc1, activation, fc2, combine in one call, forward and backward.

T tokens, K slots a token, R rows, d hidden size, f expert width, E experts, H = 2f gated, f not.
"""

import torch

from .._header import constants
from ..activation import SWIGLU, is_gated
from ._call import DTYPES, Operation, fits, rows
from ._define import autocast, decode, encode, no_second_derivative, operator
from ._dispatch import maps_of

FORWARD, BACKWARD = Operation("expert_mlp_fwd"), Operation("expert_mlp_bwd")
IN_OUT = constants["MOE_WEIGHT_IN_OUT"]
ROWS = constants["MOE_LAYOUT_ROWS"]
EXPERTS = "Tensor w1, Tensor w2, Tensor? b1, Tensor? b2, Tensor? weights, Tensor? row_weights"
# group_sizes tells padding apart; the plans of this package have none.
MAPS = "Tensor group_offsets, Tensor? token_of_row, Tensor? slot_of_row, Tensor? row_of_slot, Tensor? slot_offsets"
SIZES = "SymInt num_tokens, SymInt top_k, SymInt rows_max, str options"
SAVE_FC1, SAVE_X, INFERENCE = 0, 1, 2


def expert_mlp(x, plan, w1, w2, weights=None, b1=None, b2=None, *, row_weights=None, recompute=False, encoded="", **options):
    """y [T, d] = sum_k weights_tk (W2_e act(W1_e x_t + b1_e) + b2_e) of a Plan; options as libmoe.expert_mlp_fwd has them.
    row_weights [R] instead of weights: see `row_weights_of`.

    recompute=True saves x alone and computes fc1 again in backward. Matrices that are stored transposed ([E, d, H] seen
    as [E, H, d]) are read where they lie. Under autocast all but the router's weights are cast.
    """
    x, w1, w2, b1, b2 = autocast(x, w1, w2, b1, b2)
    w1, options["w1_layout"] = stored(w1, options.get("w1_layout", 0))
    w2, options["w2_layout"] = stored(w2, options.get("w2_layout", 0))
    sizes = plan.num_tokens, plan.top_k, plan.rows_max
    return _apply(x, (w1, w2, b1, b2, weights, row_weights), maps_of(plan), sizes, encode(options, encoded), recompute)


def expert_rows(x, group_offsets, w1, w2, row_weights=None, b1=None, b2=None, *, recompute=False, encoded="", **options):
    """The same on rows [R, d] that are sorted by expert already, with a weight a row: y [R, d]."""
    x, w1, w2, b1, b2 = autocast(x, w1, w2, b1, b2)
    w1, options["w1_layout"] = stored(w1, options.get("w1_layout", 0))
    w2, options["w2_layout"] = stored(w2, options.get("w2_layout", 0))
    options |= {"input_layout": ROWS, "output_layout": ROWS}
    maps = group_offsets, None, None, None, None
    return _apply(x, (w1, w2, b1, b2, None, row_weights), maps, (0, 1, x.shape[0]), encode(options, encoded), recompute)


def stored(w, layout):
    """(w as it is stored, its layout): the transpose of contiguous matrices is the other layout, not a copy."""
    if w.dim() == 3 and not w.is_contiguous() and w.transpose(1, 2).is_contiguous():
        return w.transpose(1, 2), 1 - layout
    return w, layout


def _apply(x, experts, maps, sizes, options, recompute):
    mode = mode_of((x, *experts), recompute)
    return torch.ops.libmoe.expert_mlp.default(x, *experts, *maps, *sizes, options, mode)[0]


def mode_of(tensors, recompute):
    """What the forward saves."""
    tracked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return INFERENCE if not tracked else SAVE_X if recompute else SAVE_FC1


@operator(f"expert_mlp(Tensor x, {EXPERTS}, {MAPS}, {SIZES}, int mode) -> (Tensor, Tensor)")
def forward(x, w1, w2, b1, b2, weights, row_weights, group_offsets, token_of_row, slot_of_row, row_of_slot, slot_offsets,
            num_tokens, top_k, rows_max, options, mode):
    """y, and fc1's output h [R, H] where it is to be saved."""
    desc, width = _desc(x, w2, num_tokens, top_k, rows_max, options)
    _fit(desc, width, x, w1, w2, b1, b2, weights, row_weights, group_offsets)
    x, w1, w2 = rows(x), rows(w1), rows(w2)
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    h = x.new_empty((rows_max, width) if mode == SAVE_FC1 else 0)
    FORWARD(x.device, desc, x=x, w1=w1, w2=w2, b1=rows(b1), b2=rows(b2), weights=_flat(weights),
            row_weights=_flat(row_weights), group_offsets=group_offsets, token_of_row=token_of_row, slot_of_row=slot_of_row,
            row_of_slot=row_of_slot, slot_offsets=slot_offsets, y=y, h=h if mode == SAVE_FC1 else None)
    return y, h


@forward.fake
def fake_forward(x, w1, w2, b1, b2, weights, row_weights, group_offsets, token_of_row, slot_of_row, row_of_slot, slot_offsets,
                 num_tokens, top_k, rows_max, options, mode):
    width = _widths(w2, decode(options))[1]
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    return y, x.new_empty((rows_max, width) if mode == SAVE_FC1 else 0)


def _setup(ctx, inputs, output):
    x, w1, w2, b1, b2, weights, row_weights, *maps, ctx.num_tokens, ctx.top_k, ctx.rows_max, ctx.options, mode = inputs
    if mode == INFERENCE:
        raise RuntimeError("libmoe::expert_mlp was called for inference, but gradients are wanted of it")
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w1, w2, b1, b2, weights, row_weights, output[1] if mode == SAVE_FC1 else None, *maps)


@forward.backward(_setup)
def _(ctx, dy, _):
    if dy is None:
        return (None,) * 17
    x, w1, w2, b1, b2, weights, row_weights, h, *maps = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:7])
    sizes = ctx.num_tokens, ctx.top_k, ctx.rows_max, ctx.options
    grads = torch.ops.libmoe.expert_mlp_backward.default(dy, x, w1, w2, b1, b2, weights, row_weights, h, *maps, *sizes, needs)
    return *(grad if needed else None for grad, needed in zip(grads, needs)), *[None] * 10


@operator(f"expert_mlp_backward(Tensor dy, Tensor x, {EXPERTS}, Tensor? h, {MAPS}, {SIZES}, bool[] needs)"
          " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
def backward(dy, x, w1, w2, b1, b2, weights, row_weights, h, group_offsets, token_of_row, slot_of_row, row_of_slot,
             slot_offsets, num_tokens, top_k, rows_max, options, needs):
    """dx, dw1, dw2, db1, db2, dweights, drow_weights; those that are not needed are empty."""
    desc, width = _desc(x, w2, num_tokens, top_k, rows_max, options)
    dy, x = rows(dy), rows(x)
    grads = _grads((x, w1, w2, b1, b2, weights, row_weights), needs)
    dx, dw1, dw2, db1, db2, dweights, drow_weights = (grad if needed else None for grad, needed in zip(grads, needs))
    BACKWARD(x.device, desc, dy=dy, x=x, w1=rows(w1), w2=rows(w2), b1=rows(b1), b2=rows(b2), weights=_flat(weights),
             row_weights=_flat(row_weights), h=h, group_offsets=group_offsets, token_of_row=token_of_row, slot_of_row=slot_of_row,
             row_of_slot=row_of_slot, slot_offsets=slot_offsets, dh=x.new_empty(rows_max, width), dx=dx, dw1=dw1, dw2=dw2,
             db1=db1, db2=db2, dweights=_flat(dweights), drow_weights=_flat(drow_weights))
    return grads


@backward.fake
def fake_backward(dy, x, w1, w2, b1, b2, weights, row_weights, h, group_offsets, token_of_row, slot_of_row, row_of_slot,
                  slot_offsets, num_tokens, top_k, rows_max, options, needs):
    return _grads((x, w1, w2, b1, b2, weights, row_weights), needs)


no_second_derivative("expert_mlp_backward")


def _grads(inputs, needs):
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format) if needed else inputs[0].new_empty(0)
        for t, needed in zip(inputs, needs)
    )


def _widths(w2, options):
    """f and H."""
    f = w2.shape[1 if options.get("w2_layout", 0) == IN_OUT else 2]
    return f, 2 * f if is_gated(options.get("activation", SWIGLU)) else f


def _desc(x, w2, num_tokens, top_k, rows_max, options):
    options = decode(options)
    f, width = _widths(w2, options)
    sizes = {"dtype": DTYPES[x.dtype], "num_tokens": num_tokens, "rows_max": rows_max, "top_k": top_k,
             "num_experts": w2.shape[0], "hidden_size": x.shape[1], "ffn_size": f}
    return sizes | options, width


def _fit(desc, width, x, w1, w2, b1, b2, weights, row_weights, group_offsets):
    """The shapes, of which the library knows nothing."""
    E, d, f, R = desc["num_experts"], desc["hidden_size"], desc["ffn_size"], desc["rows_max"]
    fits("w1", w1, *((E, d, width) if desc.get("w1_layout") == IN_OUT else (E, width, d)))
    fits("w2", w2, *((E, f, d) if desc.get("w2_layout") == IN_OUT else (E, d, f)))
    fits("b1", b1, E, width)
    fits("b2", b2, E, d)
    fits("group_offsets", group_offsets, E + 1)
    fits("row_weights", row_weights, R)
    if weights is not None and weights.numel() != desc["num_tokens"] * desc["top_k"]:
        fits("weights", weights, desc["num_tokens"], desc["top_k"])
    if desc.get("input_layout") != ROWS:
        fits("x", x, desc["num_tokens"], d)


def _flat(weights):
    return None if weights is None else weights.reshape(-1)


def row_weights_of(dense, plan):
    """The weight of each row [R] of weights [T, E], for a plan of a mask."""
    row = torch.arange(plan.rows_max, device=dense.device)
    expert = torch.searchsorted(plan.group_offsets, row, right=True) - 1
    there = row < plan.group_offsets[-1]
    place = torch.where(there, plan.token_of_row * dense.shape[1] + expert, 0)
    return torch.where(there, dense.reshape(-1)[place], 0)
