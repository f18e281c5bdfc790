"""The experts: gather, fc1, activation, fc2, combine, forward and backward.

T tokens, K slots a token, R rows, d hidden size, f expert width, E local experts, H = 2f gated, f not.
`w1` [E, H, d] (WEIGHT_OUT_IN, the default) or [E, d, H]; `w2` [E, d, f] or [E, f, d]; either may be a list of E arrays
(None: an absent expert). With `w1_up`, w1 is the gate alone and both have f for H. b1 [E, H], b2 [E, d].
Options are fields of moe_expert_mlp_desc_t: activation, gate_order, gate_block, input_layout, output_layout, weights_at,
w1_layout, w2_layout, math, clamp_limit, clamp_alpha, batch_invariant.
"""

from typing import Any, NamedTuple

from ._calls import Call, dtype_of
from ._header import constants
from .activation import SWIGLU, is_gated

TOKENS = constants["MOE_LAYOUT_TOKENS"]
OUT_IN = constants["MOE_WEIGHT_OUT_IN"]
MAPS = ("group_offsets", "group_sizes", "token_of_row", "slot_of_row", "row_of_slot", "slot_offsets")


class ExpertMlpOutput(NamedTuple):
    y: Any
    h: Any


class ExpertMlpGrads(NamedTuple):
    dx: Any
    dw1: Any
    dw1_up: Any
    dw2: Any
    db1: Any
    db2: Any
    dweights: Any
    drow_weights: Any
    dh: Any
    weighted_act: Any


class ExpertMlpWgrads(NamedTuple):
    dw1: Any
    dw1_up: Any
    dw2: Any
    db1: Any
    db2: Any


def expert_mlp_fwd(ctx, plan, x, w1, w2, weights=None, *, row_weights=None, w1_up=None, b1=None, b2=None, y=True,
                   y_mode=None, y_dtype=None, h=True, num_tokens=None, report=None, stream=None, **options):
    """y = sum_k w_tk (W2_e act(W1_e x_t + b1_e) + b2_e): x and y are [T, d], or [R, d] with the ROWS layouts.

    weights[T, K] or row_weights[R]; none is a plain sum. h[R, H], fc1's output, is what backward needs; h=False is
    inference.
    """
    call = _call(ctx, "expert_mlp_fwd", plan, options)
    call.takes(call.input, x=x)
    _takes_experts(call, options, w1=w1, w1_up=w1_up, w2=w2, b1=b1, b2=b2)
    _takes_weights(call, weights, row_weights)
    call.gives(call.output, y_dtype, y=y)
    call.gives("R H", h=h)
    call.run(_desc(call, plan, x, options), stream, y_mode=y_mode, num_tokens=num_tokens, report=report, **_maps(plan))
    return call.collect(ExpertMlpOutput)


def expert_mlp_bwd(ctx, plan, dy, x, w1, w2, h=None, weights=None, *, row_weights=None, w1_up=None, b1=None, b2=None,
                   dx=True, dw1=True, dw1_up=None, dw2=True, db1=None, db2=None, dweights=None, drow_weights=None,
                   dh=True, weighted_act=None, dx_mode=None, dw_mode=None, db_mode=None, dw_dtype=None, dx_dtype=None,
                   num_tokens=None, report=None, stream=None, **options):
    """ExpertMlpGrads of dy, shaped like y. Everything else is the forward's; h=None computes fc1 again.

    By default every gradient of what is given. dh[R, H] is always written: dh=h overwrites the saved h. Delayed weight
    gradients: dw1=dw2=db1=db2=False and weighted_act=True, then expert_mlp_wgrad.
    """
    call = _call(ctx, "expert_mlp_bwd", plan, options)
    call.takes(call.input, x=x)
    call.takes(call.output, dy=dy)
    _takes_experts(call, options, w1=w1, w1_up=w1_up, w2=w2, b1=b1, b2=b2)
    _takes_weights(call, weights, row_weights)
    call.takes("R H", h=h)
    call.gives(call.input, dx_dtype, dx=dx)
    _gives_experts(call, dw_dtype, dw1=dw1, dw1_up=_wanted(dw1_up, w1_up), dw2=dw2, db1=_wanted(db1, b1),
                   db2=_wanted(db2, b2))
    call.gives("T*K", like=weights, dweights=_wanted(dweights, weights))
    call.gives("R", like=row_weights, drow_weights=_wanted(drow_weights, row_weights))
    call.gives("R H", dh=dh)
    call.gives("R f", weighted_act=weighted_act)
    call.run(_desc(call, plan, x, options), stream, dx_mode=dx_mode, dw_mode=dw_mode, db_mode=db_mode,
             num_tokens=num_tokens, report=report, **_maps(plan))
    return call.collect(ExpertMlpGrads)


def expert_mlp_wgrad(ctx, plan, dy, x, dh, weighted_act, *, weights=None, row_weights=None, dw1=None, dw1_up=None, dw2=None,
                     db1=None, db2=None, dw_mode=None, db_mode=None, dw_dtype=None, num_tokens=None, report=None,
                     stream=None, **options):
    """ExpertMlpWgrads from what expert_mlp_bwd left: dw1, db1 of x and dh; dw2, db2 of weighted_act and dy.

    Without any request both dw1 and dw2. dw_mode="add" accumulates, for example into fp32 main_grads.
    """
    call = _call(ctx, "expert_mlp_wgrad", plan, options)
    call.takes(call.input, x=x)
    call.takes(call.output, dy=dy)
    call.takes("R H", dh=dh)
    call.takes("R f", weighted_act=weighted_act)
    _takes_weights(call, weights, row_weights)
    all_of_them = all(output is None for output in (dw1, dw1_up, dw2, db1, db2))
    call.sizes["E"] = plan.num_groups
    if "f" not in call.sizes:
        call.sizes["f"] = call["H"] // (2 if is_gated(options.get("activation", SWIGLU)) else 1)
    call.sizes["W"] = call["f"] if dw1_up is not None else call["H"]
    _gives_experts(call, dw_dtype, dw1=all_of_them or dw1, dw1_up=dw1_up, dw2=all_of_them or dw2, db1=db1, db2=db2)
    like = next(array for array in (x, dh, dy) if array is not None)
    call.run(_desc(call, plan, like, options), stream, dw_mode=dw_mode, db_mode=db_mode, num_tokens=num_tokens,
             report=report, **_maps(plan))
    return call.collect(ExpertMlpWgrads)


def _call(ctx, name, plan, options):
    call = Call(ctx, name, **plan.sizes())
    call.input = "T d" if options.get("input_layout", TOKENS) == TOKENS else "R d"
    call.output = "T d" if options.get("output_layout", TOKENS) == TOKENS else "R d"
    call.w1 = "E W d" if options.get("w1_layout", OUT_IN) == OUT_IN else "E d W"
    call.w2 = "E d f" if options.get("w2_layout", OUT_IN) == OUT_IN else "E f d"
    return call


def _takes_experts(call, options, w1, w1_up, w2, b1, b2):
    """W: the columns of w1, H of h and f, or f of both halves apart."""
    call.takes(call.w2, w2=w2)
    call.sizes["H"] = call["f"] * (2 if is_gated(options.get("activation", SWIGLU)) else 1)
    call.sizes["W"] = call["H"] if w1_up is None else call["f"]
    call.takes(call.w1, w1=w1, w1_up=w1_up)
    call.takes("E H", b1=b1)
    call.takes("E d", b2=b2)


def _gives_experts(call, dtype, dw1, dw1_up, dw2, db1, db2):
    call.gives(call.w1, dtype, dw1=dw1, dw1_up=dw1_up)
    call.gives(call.w2, dtype, dw2=dw2)
    call.gives("E H", dtype, db1=db1)
    call.gives("E d", dtype, db2=db2)


def _takes_weights(call, weights, row_weights):
    call.takes("T*K", weights=weights)
    call.takes("R", row_weights=row_weights)


def _wanted(output, of):
    """An output that was not decided on is wanted where there is something to give the gradient of."""
    return of is not None if output is None else output


def _maps(plan):
    return {name: getattr(plan, name) for name in MAPS}


def _desc(call, plan, x, options):
    return {"dtype": dtype_of(x), "num_tokens": call.sizes.get("T", 0), "rows_max": call["R"], "top_k": plan.top_k,
            "num_experts": plan.num_groups, "hidden_size": call["d"], "ffn_size": call["f"], **options}
