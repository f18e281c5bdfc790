"""Activations against float64 formulas; their gradients against complex steps, which share no formula with the library."""

import math

import numpy as np
import pytest

import libmoe
from harness import array, assert_close, empty, host, on_cpu, report, report_fields, rounded

ACTIVATIONS = {name: getattr(libmoe, "ACTIVATION_" + name) for name in (
    "SWIGLU", "GEGLU_ERF", "GEGLU_TANH", "QUICK_GEGLU", "REGLU", "CLAMPED_SWIGLU", "SILU", "GELU_ERF", "GELU_TANH",
    "RELU", "RELU2")}
GATED = ("SWIGLU", "GEGLU_ERF", "GEGLU_TANH", "QUICK_GEGLU", "REGLU", "CLAMPED_SWIGLU")
ORDERS = {name: getattr(libmoe, name) for name in ("GATE_FIRST", "UP_FIRST", "GATE_INTERLEAVED")}
DTYPES = ("fp64", "fp32", "fp16", "bf16")


def dtypes():
    return DTYPES if on_cpu() else DTYPES[1:]


def erf(z):
    """Also for z = x + i*h with a tiny h."""
    value = np.vectorize(math.erf, otypes=[float])(z.real)
    return value + 1j * z.imag * 2 / math.sqrt(math.pi) * np.exp(-z.real**2) if np.iscomplexobj(z) else value


CURVES = {
    "SWIGLU": lambda x: x / (1 + np.exp(-x)),
    "GEGLU_ERF": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "GEGLU_TANH": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "QUICK_GEGLU": lambda x: x / (1 + np.exp(-1.702 * x)),
    "REGLU": lambda x: np.where(x.real > 0, x, 0),
    "RELU2": lambda x: np.where(x.real > 0, x * x, 0),
}
CURVES |= {"SILU": CURVES["SWIGLU"], "GELU_ERF": CURVES["GEGLU_ERF"], "GELU_TANH": CURVES["GEGLU_TANH"],
           "RELU": CURVES["REGLU"]}


def act(name, gate, up, limit=7.0, alpha=1.702):
    """The activation of (complex) halves; `up` is ignored without a gate."""
    if name == "CLAMPED_SWIGLU":
        gate = np.where(gate.real > limit, limit, gate)
        up = np.where(up.real > limit, limit, np.where(up.real < -limit, -limit, up))
        return (up + 1) * gate / (1 + np.exp(-alpha * gate))
    return CURVES[name](gate) * up if name in GATED else CURVES[name](gate)


def columns(name, order, block, ffn):
    """Which columns of h are the gate's and which are up's."""
    i = np.arange(ffn)
    if name not in GATED:
        return i, i
    if order == "GATE_INTERLEAVED":
        gate = i // block * 2 * block + i % block
        return gate, gate + block
    return (i, i + ffn) if order == "GATE_FIRST" else (i + ffn, i)


def act_of_h(name, h, order="GATE_FIRST", block=1, **constants):
    """act(h) and, by complex steps, its derivatives by gate and by up, in float64."""
    ffn = h.shape[1] // (2 if name in GATED else 1)
    gate_at, up_at = columns(name, order, block, ffn)
    gate, up = h[:, gate_at], h[:, up_at]
    step = 1e-30
    by_gate = act(name, gate + 1j * step, up + 0j, **constants).imag / step
    by_up = act(name, gate + 0j, up + 1j * step, **constants).imag / step
    return act(name, gate, up, **constants), by_gate, by_up


def gradient_of_h(name, h, dact, order="GATE_FIRST", block=1, **constants):
    """dh where act(h) has the gradient dact, in float64."""
    _, by_gate, by_up = act_of_h(name, h, order, block, **constants)
    gate_at, up_at = columns(name, order, block, dact.shape[1])
    dh = np.empty_like(h)
    if name in GATED:
        dh[:, up_at] = dact * by_up
    dh[:, gate_at] = dact * by_gate
    return dh


def describe(name, dtype, rows, ffn, order="GATE_FIRST", block=0, **constants):
    names = {"limit": "clamp_limit", "alpha": "clamp_alpha"}
    return {"dtype": dtype, "rows_max": rows, "ffn_size": ffn, "activation": ACTIVATIONS[name],
            "gate_order": ORDERS[order], "gate_block": block, **{names[k]: v for k, v in constants.items()}}


CASES = [(name, order) for name in ACTIVATIONS for order in (ORDERS if name in GATED else ["GATE_FIRST"])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name,order", CASES)
def test_forward_and_backward(ctx, rng, guarded, name, order, dtype):
    if dtype not in dtypes():
        pytest.skip("FP64 is the CPU's")
    for _ in range(3):
        check_case(ctx, rng, guarded, name, order, dtype)


@pytest.mark.parametrize("name,order", [("SWIGLU", "UP_FIRST"), ("CLAMPED_SWIGLU", "GATE_INTERLEAVED"), ("RELU2", "GATE_FIRST")])
def test_wide_rows(ctx, rng, guarded, name, order):
    for dtype in dtypes():
        check_case(ctx, rng, guarded, name, order, dtype, width=400)


def check_case(ctx, rng, guarded, name, order, dtype, width=0):
    rows, block = int(rng.integers(0, 70)), int(rng.choice([8] if width else [1, 2, 8, 32]))
    ffn = block * (width + int(rng.integers(1, 9)))
    hidden = 2 * ffn if name in GATED else ffn
    pitch_h, pitch = hidden + int(rng.integers(0, 3)) * 8, ffn + int(rng.integers(0, 3)) * 8
    constants = {"limit": 1.5, "alpha": 1.2} if rng.random() < 0.5 else {}
    weighted = rng.random() < 0.7
    # Values that the dtype holds, some of them on the clamp's boundary.
    limit = constants.get("limit", 7.0)
    h = rounded(rng.normal(size=(rows, hidden)) * 3, dtype)
    h = np.where(rng.random(h.shape) < 0.1, rng.choice([-limit, 0.0, limit], h.shape), h)
    dy = rounded(rng.normal(size=(rows, ffn)), dtype)
    weight_dtype = rng.choice([d for d in dtypes()])
    w = rounded(rng.normal(size=rows), weight_dtype)
    true_rows = int(rng.integers(0, rows + 1))
    count = array(np.array(true_rows), str(rng.choice(["int32", "int64"])))
    desc = describe(name, dtype, rows, ffn, order, block if order == "GATE_INTERLEAVED" else 0, **constants)
    scale = w[:, None] if weighted else 1.0

    def with_pitch(x, pitch):
        wide = np.full((rows, pitch), np.nan)
        wide[:, :x.shape[1]] = x
        wide[true_rows:] = np.nan
        return array(wide, dtype)[:, :x.shape[1]]

    y = guarded((rows, ffn), dtype, pitch)
    args = {"h": with_pitch(h, pitch_h), "y": y, "num_rows": count}
    if weighted:
        args["row_weights"] = array(w, weight_dtype)
    ctx.run("activation_fwd", desc, args)
    expected = act_of_h(name, h, order, block, **constants)[0]
    inner = slice(0, true_rows)
    assert_close(y[inner], (scale * expected)[inner], dtype, "y")
    assert np.isnan(host(y[true_rows:])).all(), "rows beyond the count were written"

    dh, weighted_act, dweights = guarded((rows, hidden), dtype, pitch_h), guarded((rows, ffn), dtype, pitch), None
    in_place = rng.random() < 0.5
    h_given = args["h"]
    args = {"h": h_given, "dy": with_pitch(dy, pitch), "dh": h_given if in_place else dh, "num_rows": count}
    if rng.random() < 0.7:
        args["weighted_act"] = weighted_act
    if weighted:
        args["row_weights"] = array(w, weight_dtype)
        dweights = args["drow_weights"] = guarded(rows, weight_dtype)
    ctx.run("activation_bwd", desc, args)
    assert_close(args["dh"][inner], gradient_of_h(name, h, scale * dy, order, block, **constants)[inner], dtype, "dh")
    assert np.isnan(host(args["dh"][true_rows:])).all()
    if "weighted_act" in args:
        assert_close(weighted_act[inner], (scale * expected)[inner], dtype, "weighted_act")
        assert np.isnan(host(weighted_act[true_rows:])).all()
    if weighted:
        accuracy = max(dtype if dtype != "fp64" else "fp32", weight_dtype, key=["fp64", "fp32", "fp16", "bf16"].index)
        assert_close(dweights[inner], (dy * expected).sum(1)[inner], accuracy, "drow_weights")
        assert np.isnan(host(dweights[true_rows:])).all()


def test_gradient_at_the_clamps_boundary_is_one_beyond_it_zero(ctx):
    limit = 2.0
    h = np.array([[2.0, 2.0], [2.0, -2.0], [2.5, 1.0], [1.0, 2.5], [1.0, -2.5], [-9.0, 1.0]])
    dy, dh = np.ones((6, 1)), empty((6, 2), "fp32")
    desc = describe("CLAMPED_SWIGLU", "fp32", 6, 1, limit=limit)
    ctx.run("activation_bwd", desc, {"h": array(h, "fp32"), "dy": array(dy, "fp32"), "dh": dh})
    moves = host(dh) != 0
    assert moves.tolist() == [[True, True], [True, True], [False, True], [True, False], [True, False], [True, True]]
    g = 2.0 / (1 + math.exp(-1.702 * 2.0))
    assert host(dh)[0, 1] == pytest.approx(g, rel=1e-5) and host(dh)[1, 1] == pytest.approx(g, rel=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_huge_values_stay_finite(ctx, name):
    """No overflow on the way: x^2, x^3 and exp(-x) of large x must not turn gradients into NaN."""
    x = np.array([-1e30, -1e15, -1e4, -100.0, -0.0, 0.0, 100.0, 1e4, 1e15])
    h = np.stack([x, np.ones_like(x)], 1) if name in GATED else x[:, None]
    rows = len(x)
    y, dh = empty((rows, 1), "fp32"), empty(h.shape, "fp32")
    desc = describe(name, "fp32", rows, 1)
    ctx.run("activation_fwd", desc, {"h": array(h, "fp32"), "y": y})
    ctx.run("activation_bwd", desc, {"h": array(h, "fp32"), "dy": array(np.ones((rows, 1)), "fp32"), "dh": dh})
    assert np.isfinite(host(y)).all() and np.isfinite(host(dh)).all()


def test_nan_stays_nan(ctx):
    for name in ACTIVATIONS:
        h = np.array([[np.nan, 1.0], [1.0, 1.0]]) if name in GATED else np.array([[np.nan], [1.0]])
        y = empty((2, 1), "fp32")
        ctx.run("activation_fwd", describe(name, "fp32", 2, 1), {"h": array(h, "fp32"), "y": y})
        assert np.isnan(host(y)[0, 0]) and np.isfinite(host(y)[1, 0]), name


@pytest.mark.parametrize("given,rows", [(-3, 0), (9, 4)])
def test_count_out_of_range_is_clamped_and_reported(ctx, given, rows):
    y, fault = empty((4, 2), "fp32"), report()
    args = {"h": array(np.ones((4, 4)), "fp32"), "y": y, "num_rows": array(np.array(given), "int64"), "report": fault}
    ctx.run("activation_fwd", describe("SWIGLU", "fp32", 4, 2), args)
    assert np.isfinite(host(y)).all(axis=1).sum() == rows
    assert report_fields(fault) == (libmoe.FAULT_COUNT, 4, given)


def test_nothing_to_do(ctx):
    desc = describe("SWIGLU", "fp32", 0, 4)
    assert ctx.query("activation_fwd_workspace_size", desc) == 0
    ctx.run("activation_fwd", desc, {"h": empty((0, 8), "fp32"), "y": empty((0, 4), "fp32")})


MISUSE = [
    ({"ffn_size": 0}, {}, "ffn_size is 0; at least 1"),
    ({"ffn_size": 2**31}, {}, "ffn_size"),
    ({"rows_max": -1}, {}, "rows_max is -1; at least 0"),
    ({"rows_max": 2**40, "ffn_size": 2**29}, {}, "rows_max"),
    ({"dtype": 0}, {}, "desc.dtype is 0"),
    ({"dtype": "int32"}, {}, "desc.dtype is INT32"),
    ({"activation": 11}, {}, "activation is 11; at most 10"),
    ({"gate_order": -1}, {}, "gate_order is -1"),
    ({"gate_order": 2, "gate_block": 3}, {}, "gate_block is 3; a divisor"),
    ({"gate_block": -1}, {}, "gate_block is -1"),
    ({"clamp_limit": float("nan")}, {}, "clamp_limit is NaN"),
    ({"clamp_limit": -7.0}, {}, "clamp_limit is -7"),
    ({"clamp_alpha": float("inf")}, {}, "clamp_alpha is inf"),
    ({}, {"reserved": 1}, "reserved is 1"),
    ({}, {"h": None}, "h.data is NULL"),
    ({}, {"y": None}, "y.data is NULL"),
    ({}, {"num_rows": {"device": 64, "dtype": 1}}, "num_rows.dtype is FP32"),
    ({}, {"num_rows": {"device": 65, "dtype": "int64"}}, "num_rows.device"),
    ({}, {"report": 3}, "report"),
    ({}, {"row_weights": {"data": 64, "dtype": "int32"}}, "row_weights.dtype is INT32"),
    ({}, {"row_weights": {"data": 64, "dtype": "fp32", "row_pitch": 2}}, "row_weights.row_pitch is 2"),
]


@pytest.mark.parametrize("desc,args,message", MISUSE)
def test_misuse_is_named_and_nothing_written(ctx, desc, args, message):
    h, y = array(np.ones((4, 8)), "fp32"), empty((4, 4), "fp32")
    desc = describe("SWIGLU", "fp32", 4, 4) | desc
    with pytest.raises(libmoe.InvalidArgument) as error:
        ctx.run("activation_fwd", desc, {"h": h, "y": y} | args)
    assert message in str(error.value)
    assert np.isnan(host(y)).all()


def test_gradient_of_weights_needs_weights(ctx):
    args = {name: array(np.ones((4, 8 if name in ("h", "dh") else 4)), "fp32") for name in ("h", "dy", "dh")}
    args["drow_weights"] = empty(4, "fp32")
    with pytest.raises(libmoe.InvalidArgument, match="drow_weights is given"):
        ctx.run("activation_bwd", describe("SWIGLU", "fp32", 4, 4), args)
    assert np.isnan(host(args["drow_weights"])).all()


def test_fp64_is_the_cpus(ctx):
    if on_cpu():
        pytest.skip("of the GPU")
    with pytest.raises(libmoe.Unsupported, match="FP64"):
        ctx.run("activation_fwd", describe("SWIGLU", "fp64", 0, 4), {})
