"""Activations, gated and not. R rows, f expert width, H columns of h: 2f gated, f not."""

from typing import Any, NamedTuple

from ._calls import Call, dtype_of
from ._header import constants

SWIGLU = constants["MOE_ACTIVATION_SWIGLU"]


class ActivationGrads(NamedTuple):
    dh: Any
    drow_weights: Any
    weighted_act: Any


def is_gated(activation):
    """Whether h holds a gate beside the value."""
    return activation <= constants["MOE_ACTIVATION_CLAMPED_SWIGLU"]


def activation_fwd(ctx, h, activation=SWIGLU, *, row_weights=None, y=True, num_rows=None, report=None, stream=None,
                   **options):
    """y[R, f] = act(h[R, H]) (* row_weights[R]). Options: gate_order, gate_block, clamp_limit, clamp_alpha."""
    call = _call(ctx, "activation_fwd", h, activation, row_weights)
    call.gives("R f", y=y)
    call.run(_desc(call, h, activation, options), stream, num_rows=num_rows, report=report)
    return call.args["y"]


def activation_bwd(ctx, h, dy, activation=SWIGLU, *, row_weights=None, dh=True, drow_weights=None, weighted_act=None,
                   num_rows=None, report=None, stream=None, **options):
    """dh[R, H] (dh=h overwrites), drow_weights[R] with row_weights, and on request the forward's y as weighted_act."""
    call = _call(ctx, "activation_bwd", h, activation, row_weights)
    call.takes("R f", dy=dy)
    call.gives("R H", dh=dh)
    call.gives("R f", weighted_act=weighted_act)
    wanted = row_weights is not None if drow_weights is None else drow_weights
    call.gives("R", like=row_weights, drow_weights=wanted)
    call.run(_desc(call, h, activation, options), stream, num_rows=num_rows, report=report)
    return call.collect(ActivationGrads)


def _call(ctx, name, h, activation, row_weights):
    call = Call(ctx, name)
    call.takes("R H", h=h)
    call.takes("R", row_weights=row_weights)
    call.sizes["f"] = call["H"] // 2 if is_gated(activation) else call["H"]
    return call


def _desc(call, h, activation, options):
    return {"dtype": dtype_of(h), "rows_max": call["R"], "ffn_size": call["f"], "activation": activation, **options}
