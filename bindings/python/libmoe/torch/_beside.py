"""Operator of routed experts with shared ones beside them, on a GPU on a second stream: torch.compile's graphs cannot switch streams.

The shared experts are one that all rows of shared_x [T, d] go to, shared_offsets int64 [0, T].
"""

import functools

import torch

from . import _expert_mlp as mlp
from ._call import context
from ._define import autocast, encode, no_second_derivative, operator
from ._dispatch import maps_of

SHARED = "Tensor shared_x, Tensor shared_w1, Tensor shared_w2, Tensor shared_offsets"
NO_EXPERTS, NO_MAPS = (None,) * 4, (None,) * 4


def expert_mlp_beside(x, plan, w1, w2, weights, b1, b2, row_weights, shared, offsets, *, recompute, encoded, shared_encoded):
    """(y, the shared experts' y [T, d]); `shared` has x, w1 [1, H, d] and w2 [1, d, f] of theirs, the rest is expert_mlp's."""
    x, w1, w2, b1, b2, *shared = autocast(x, w1, w2, b1, b2, *shared)
    w1, w1_layout = mlp.stored(w1, 0)
    w2, w2_layout = mlp.stored(w2, 0)
    options = encode({"w1_layout": w1_layout, "w2_layout": w2_layout}, encoded)
    shared_options = encode({"input_layout": mlp.ROWS, "output_layout": mlp.ROWS}, shared_encoded)
    experts = w1, w2, b1, b2, weights, row_weights
    mode = mlp.mode_of((x, *experts, *shared), recompute)
    y, _, shared_y, _ = torch.ops.libmoe.expert_mlp_beside.default(
        x, *experts, *maps_of(plan), plan.num_tokens, plan.top_k, plan.rows_max, options, mode, *shared, offsets,
        shared_options)
    return y, shared_y


def side_by_side(first, second, x):
    """(first(), second()) of x, the former a tuple of tensors; on a GPU on a second stream, for which the current one waits.

    Autograd runs each backward on its forward's stream.
    """
    if x.device.type != "cuda":
        return first(), second()
    main, side = torch.cuda.current_stream(x.device), side_stream(x.device)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        one = first()
    two = second()
    main.wait_stream(side)
    # The allocator must know that both streams use them, x perhaps in backward.
    x.record_stream(side)
    for tensor in one:
        tensor.record_stream(main)
    return one, two


@functools.cache
def side_stream(device):
    context(device)
    return torch.cuda.Stream(device)


@operator(f"expert_mlp_beside(Tensor x, {mlp.EXPERTS}, {mlp.MAPS}, {mlp.SIZES}, int mode, {SHARED}, str shared_options)"
          " -> (Tensor, Tensor, Tensor, Tensor)")
def forward(*arguments):
    routed, shared = _forward_arguments(arguments)
    of_shared, of_routed = side_by_side(lambda: mlp.forward(*shared), lambda: mlp.forward(*routed), routed[0])
    return *of_routed, *of_shared


@forward.fake
def _(*arguments):
    routed, shared = _forward_arguments(arguments)
    return *mlp.fake_forward(*routed), *mlp.fake_forward(*shared)


def _forward_arguments(arguments):
    """Of the routed and of the shared experts, as expert_mlp takes them."""
    *routed, x, w1, w2, offsets, options = arguments
    return routed, (x, w1, w2, *NO_EXPERTS, offsets, *NO_MAPS, 0, 1, x.shape[0], options, routed[-1])


def _setup(ctx, inputs, output):
    *routed, shared_x, shared_w1, shared_w2, shared_offsets, ctx.shared_options = inputs
    *tensors, ctx.num_tokens, ctx.top_k, ctx.rows_max, ctx.options, mode = routed
    if mode == mlp.INFERENCE:
        raise RuntimeError("libmoe::expert_mlp_beside was called for inference, but gradients are wanted of it")
    ctx.mark_non_differentiable(output[1], output[3])
    saved = mode == mlp.SAVE_FC1
    ctx.save_for_backward(*tensors, output[1] if saved else None, shared_x, shared_w1, shared_w2, shared_offsets,
                          output[3] if saved else None)


@forward.backward(_setup)
def _(ctx, dy, _h, shared_dy, _shared_h):
    *tensors, h, shared_x, shared_w1, shared_w2, shared_offsets, shared_h = ctx.saved_tensors
    needs, shared_needs = list(ctx.needs_input_grad[:7]), list(ctx.needs_input_grad[17:20])
    sizes = ctx.num_tokens, ctx.top_k, ctx.rows_max, ctx.options
    grads = torch.ops.libmoe.expert_mlp_beside_backward.default(
        dy, *tensors[:7], h, *tensors[7:], *sizes, needs, shared_dy, shared_x, shared_w1, shared_w2, shared_offsets, shared_h,
        ctx.shared_options, shared_needs)
    grads = [grad if needed else None for grad, needed in zip(grads, needs + shared_needs)]
    return *grads[:7], *[None] * 10, *grads[7:], None, None


@operator(f"expert_mlp_beside_backward(Tensor dy, Tensor x, {mlp.EXPERTS}, Tensor? h, {mlp.MAPS}, {mlp.SIZES}, bool[] needs,"
          f" Tensor shared_dy, {SHARED}, Tensor? shared_h, str shared_options, bool[] shared_needs)"
          " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)")
def backward(*arguments):
    """expert_mlp_backward's gradients, and those of shared_x, shared_w1, shared_w2."""
    routed, shared = _backward_arguments(arguments)
    of_shared, of_routed = side_by_side(lambda: mlp.backward(*shared), lambda: mlp.backward(*routed), routed[0])
    return *of_routed, *of_shared[:3]


@backward.fake
def _(*arguments):
    routed, shared = _backward_arguments(arguments)
    return *mlp.fake_backward(*routed), *mlp.fake_backward(*shared)[:3]


def _backward_arguments(arguments):
    *routed, dy, x, w1, w2, offsets, h, options, needs = arguments
    return routed, (dy, x, w1, w2, *NO_EXPERTS, h, offsets, *NO_MAPS, 0, 1, x.shape[0], options, [*needs, *[False] * 4])


no_second_derivative("expert_mlp_beside_backward")
