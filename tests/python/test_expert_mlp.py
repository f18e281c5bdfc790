"""The expert MLP against the float64 reference of expert_mlp_reference.py."""

import numpy as np
import pytest

import libmoe
from expert_mlp_reference import LAYOUTS, WEIGHTS_AT, Plan, Problem, Run, check, draw, dtypes
from harness import ROUTINGS, array, bits, empty, host, on_cpu, poisoned, report, report_fields, zeros
from test_activation import GATED, ORDERS


@pytest.mark.parametrize("index", range(60))
def test_random_options(ctx, rng, guarded, index):
    check(ctx, rng, guarded)


@pytest.mark.parametrize("activation,order,block", [
    ("SWIGLU", "GATE_FIRST", 1), ("GEGLU_TANH", "UP_FIRST", 1), ("CLAMPED_SWIGLU", "GATE_INTERLEAVED", 1),
    ("REGLU", "GATE_INTERLEAVED", 300), ("RELU2", "GATE_FIRST", 1)])
@pytest.mark.parametrize("split", [False, True])
def test_inference_of_wide_experts(ctx, rng, guarded, activation, order, block, split):
    """h is not kept: it is made some columns at a time."""
    split &= activation in GATED and order != "GATE_INTERLEAVED"
    for layout in LAYOUTS:
        check(ctx, rng, guarded, activation=activation, order=order, block=block, f=900, d=40, split=split, keep_h=False,
              w1_layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_output_of_many_rows_is_made_in_halves(ctx, rng, guarded, layout):
    plan = Plan(ROUTINGS["uniform"](rng, 21, 4, 2), 4, 21, spare=8_400)
    d = 16384
    wide = dict.fromkeys(("y_dtype", "dw_dtype", "bias_dtype"), "fp32")
    check(ctx, rng, guarded, plan=plan, d=d, f=8, block=8, dtype="bf16", w2_layout=layout, output_rows=False, missing=set(), **wide)
    needed = {rows: workspace_of(ctx, plan, d, rows) for rows in (plan.rows_max // 2, plan.rows_max)}
    assert needed[plan.rows_max] < 1.1 * needed[plan.rows_max // 2]


def workspace_of(ctx, plan, d, rows):
    """Bytes that the forward asks for."""
    desc = {"dtype": "bf16", "num_tokens": len(plan.ids), "rows_max": rows, "top_k": 2, "hidden_size": d, "ffn_size": 8,
            "num_experts": 4}
    return ctx.query("expert_mlp_fwd_workspace_size", desc)


def loss_and_gradients(ctx, case, run, p):
    """<y, dy> of the library's forward, and its gradients by the library's backward."""
    y = empty(p.y.shape, "fp64")
    run.call("expert_mlp_fwd", {**run.routing, **run.weights, "x": run.x, "y": y})
    out = {"dx": empty(p.dx.shape, "fp64"), "dw1": empty(p.w1.shape, "fp64"), "dw2": empty(p.w2.shape, "fp64"),
           "db1": empty(p.b1.shape, "fp64"), "db2": empty(p.b2.shape, "fp64"), "dweights": empty(p.dslot.shape, "fp64"),
           "dh": empty(p.h.shape, "fp64")}
    run.call("expert_mlp_bwd", {**run.routing, **run.weights, **out, "x": run.x, "dy": run.dy})
    return float((host(y) * p.dy).sum()), out


@pytest.mark.cpu
@pytest.mark.parametrize("weights_at", WEIGHTS_AT)
@pytest.mark.parametrize("activation", ["SWIGLU", "GEGLU_ERF", "GEGLU_TANH", "CLAMPED_SWIGLU", "SILU", "GELU_ERF"])
def test_gradients_against_finite_differences(ctx, rng, guarded, activation, weights_at):
    plan = Plan(ROUTINGS["sentinels"](rng, 5, 3, 2), 3, 5)
    case = draw(rng, plan=plan, dtype="fp64", d=6, f=4, activation=activation, order="GATE_FIRST", block=1, constants={},
                weights_at=weights_at, weights="slot", weights_dtype="fp64", input_rows=False, output_rows=False,
                w1_layout="OUT_IN", w2_layout="OUT_IN", split=False, b1=True, b2=True, bias_dtype="fp64", missing=set(),
                y_dtype="fp64", dw_dtype="fp64", sizes_given=False, pad=0)
    p = Problem(rng, case)
    run = Run(ctx, p, guarded)
    for name in ("w1", "w2"):
        run.weights[name] = array(getattr(p, name), "fp64")
    _, gradients = loss_and_gradients(ctx, case, run, p)
    inputs = {"dx": run.x, "dw1": run.weights["w1"], "dw2": run.weights["w2"], "db1": run.weights["b1"],
              "db2": run.weights["b2"], "dweights": run.routing["weights"]}
    for name, x in inputs.items():
        direction = rng.normal(size=x.shape)
        before, step, losses = x.copy(), 1e-6, []
        for sign in (1, -1):
            x[...] = before + sign * step * direction
            losses.append(loss_and_gradients(ctx, case, run, p)[0])
        x[...] = before
        expected = (losses[0] - losses[1]) / (2 * step)
        assert float((host(gradients[name]) * direction).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-7), name


def simple(ctx, rng, guarded, **fixed):
    """A plain case: bf16-free, stacked, TOKENS, weights a slot."""
    ids = ROUTINGS["uniform"](rng, 9, 4, 2)
    options = dict(plan=Plan(ids, 4, 9), dtype="fp32", d=16, f=8, activation="SWIGLU", order="GATE_FIRST", constants={},
                   weights_at="COMBINE", weights="slot", weights_dtype="fp32", input_rows=False, output_rows=False,
                   w1_layout="OUT_IN", w2_layout="OUT_IN", split=False, b1=False, b2=False, missing=set(), pad=0,
                   sizes_given=False, y_dtype="fp32", dw_dtype="fp32", map_dtype="int64", add=["overwrite"] * 4,
                   keep_h=True, recompute=False, in_place=False, delayed=False)
    p = Problem(rng, draw(rng, **{**options, **fixed}))
    run = Run(ctx, p, guarded)
    for name in ("w1", "w2"):
        run.weights[name] = array(getattr(p, name), p.case.dtype)
    return p, run


BAD_DATA = {
    "token_of_row": ("FAULT_TOKEN_INDEX", lambda x, rng: rng.choice([9, 10**9])),
    "row_of_slot": ("FAULT_ROW_INDEX", lambda x, rng: rng.choice([18, 10**9, -5])),
    "slot_of_row": ("FAULT_SLOT_INDEX", lambda x, rng: rng.choice([18, 10**9])),
    "group_offsets": ("FAULT_GROUP_OFFSET", lambda x, rng: rng.choice([-3, 19, 10**12])),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_maps_are_reported_and_lead_nowhere(ctx, rng, guarded, name):
    fault, value = BAD_DATA[name]
    for _ in range(5):
        p, run = simple(ctx, rng, guarded, weights_at="ACTIVATION")
        data = host(run.routing[name])
        data[rng.integers(len(data))] = value(data, rng)
        run.routing[name] = array(data, "int64")
        y, h = guarded(p.y.shape, "fp32"), guarded(p.h.shape, "fp32")
        out = {"dx": guarded(p.dx.shape, "fp32"), "dh": guarded(p.h.shape, "fp32"), "dw1": guarded(p.w1.shape, "fp32"),
               "dw2": guarded(p.w2.shape, "fp32"), "dweights": guarded(p.dslot.shape, "fp32")}
        calls = {"expert_mlp_fwd": {"x": run.x, "y": y, "h": h},
                 "expert_mlp_bwd": {"x": run.x, "dy": run.dy, "h": h, **out}}
        for call, args in calls.items():
            told = report()
            ctx.run(call, p.case.desc(), {**run.routing, **run.weights, **args, "report": told})
            what = report_fields(told)[0]
            assert what == getattr(libmoe, fault) or (name == "group_offsets" and what), (call, what, data)


def test_same_bits_again(ctx, rng, guarded):
    p, run = simple(ctx, rng, guarded, dtype=dtypes()[-1], d=64, f=64, y_dtype="fp32")
    results = []
    for _ in range(3):
        y, h = empty(p.y.shape, "fp32"), empty(p.h.shape, p.case.dtype)
        out = {"dx": empty(p.dx.shape, "fp32"), "dh": empty(p.h.shape, p.case.dtype), "dw1": empty(p.w1.shape, "fp32"),
               "dw2": empty(p.w2.shape, "fp32"), "dweights": empty(p.dslot.shape, "fp32")}
        run.call("expert_mlp_fwd", {**run.routing, **run.weights, "x": run.x, "y": y, "h": h})
        run.call("expert_mlp_bwd", {**run.routing, **run.weights, "x": run.x, "dy": run.dy, "h": h, **out})
        results.append(np.concatenate([bits(x).ravel() for x in (y, h, *out.values())]))
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_no_tokens_still_write_gradients_of_weights(ctx, rng, guarded):
    p, run = simple(ctx, rng, guarded, plan=Plan(np.zeros((0, 2), int), 4, 0))
    dw1, dw2 = guarded(p.w1.shape, "fp32"), guarded(p.w2.shape, "fp32")
    args = {"dy": run.dy, "x": run.x, "dh": empty(p.dh.shape, "fp32"), "dw1": dw1, "dw2": dw2}
    run.call("expert_mlp_bwd", {**run.routing, **run.weights, **args})
    assert not host(dw1).any() and not host(dw2).any()


DESC_MISUSE = [
    ({"dtype": 0}, "desc.dtype is 0"), ({"dtype": "int64"}, "desc.dtype is INT64"), ({"num_tokens": -1}, "num_tokens is -1"),
    ({"rows_max": -1}, "rows_max is -1"), ({"rows_max": 2**41}, "rows_max"), ({"top_k": 0}, "top_k is 0; at least 1"),
    ({"num_experts": 0}, "num_experts is 0; at least 1"), ({"hidden_size": 0}, "hidden_size is 0"),
    ({"ffn_size": -4}, "ffn_size is -4"), ({"input_layout": 2}, "input_layout is 2; at most 1"),
    ({"output_layout": -1}, "output_layout is -1"), ({"weights_at": 3}, "weights_at is 3"), ({"math": 2}, "math is 2"),
    ({"w1_layout": 2}, "w1_layout is 2"), ({"w2_layout": 9}, "w2_layout is 9"), ({"activation": 99}, "activation is 99"),
    ({"gate_order": 3}, "gate_order is 3"), ({"gate_order": 2, "gate_block": 5}, "gate_block is 5; a divisor"),
    ({"clamp_limit": float("inf")}, "clamp_limit is inf"), ({"batch_invariant": 2}, "batch_invariant is 2"),
    ({"reserved": 1}, "desc.reserved is 1"), ({"num_tokens": 2**40, "top_k": 2**30}, "num_tokens x desc.top_k"),
]
FWD_MISUSE = [
    ({"reserved": 1}, "args.reserved is 1"), ({"x": None}, "args.x.data is NULL"), ({"w1": None}, "args.w1.data is NULL"),
    ({"w2": None}, "args.w2.data is NULL"), ({"y": None}, "args.y.data is NULL"),
    ({"group_offsets": None}, "group_offsets is NULL"), ({"group_sizes": 4}, "group_sizes"),
    ({"token_of_row": None}, "args.token_of_row.data is NULL"), ({"row_of_slot": None}, "args.row_of_slot.data is NULL"),
    ({"y_mode": 3}, "args.y_mode.mode is 3"), ({"y_mode": 2}, "args.y_mode.add is NULL"),
    ({"x": {"data": 64, "dtype": "fp16"}}, "args.x.dtype is FP16"), ({"y": {"data": 64, "dtype": "fp16"}}, "args.y.dtype"),
    ({"w1": {"data": 64, "dtype": "fp32", "row_pitch": 3}}, "args.w1.row_pitch is 3"),
    ({"b1": {"data": 64, "dtype": "fp16"}}, "args.b1.dtype is FP16"), ({"b2": {"data": 65, "dtype": "fp32"}}, "args.b2.data"),
    ({"weights": {"data": 64, "dtype": "int32"}}, "args.weights.dtype"), ({"num_tokens": {"device": 64, "dtype": 4}}, "num_tokens"),
    ({"row_weights": {"data": 64, "dtype": "fp32"}}, "args.row_weights is given; absent where args.weights is given"),
    ({"h": {"data": 64, "dtype": "fp16"}}, "args.h.dtype"), ({"report": 4}, "report"),
]


@pytest.mark.parametrize("desc,args,message", [(d, {}, m) for d, m in DESC_MISUSE] + [({}, a, m) for a, m in FWD_MISUSE])
def test_misuse_is_named_and_nothing_written(ctx, rng, guarded, desc, args, message):
    p, run = simple(ctx, rng, guarded)
    y = empty(p.y.shape, "fp32")
    args = {**run.routing, **run.weights, "x": run.x, "y": y} | args
    with pytest.raises(libmoe.InvalidArgument) as error:
        ctx.run("expert_mlp_fwd", p.case.desc(**desc), args)
    assert message in str(error.value)
    assert poisoned(y).all()


BWD_MISUSE = [
    ({"dy": None}, "args.dy.data is NULL"), ({"dh": None}, "args.dh.data is NULL"), ({"slot_of_row": None}, "slot_of_row"),
    ({"x": None}, "for the gradient of W1"), ({"x": None, "h": None, "dw1": None}, "fc1 is computed again"),
    ({"weights": None}, "args.dweights is given; absent where args.weights"),
    ({"drow_weights": {"data": 64, "dtype": "fp32"}}, "args.drow_weights is given"),
    ({"dw1_up": {"data": 64, "dtype": "fp32"}}, "args.dw1_up is given"), ({"dx_mode": 7}, "args.dx_mode.mode is 7"),
    ({"dw_mode": 7}, "args.dw_mode.mode is 7"), ({"db_mode": 7}, "args.db_mode.mode is 7"),
]


@pytest.mark.parametrize("args,message", BWD_MISUSE)
def test_misuse_of_backward(ctx, rng, guarded, args, message):
    p, run = simple(ctx, rng, guarded)
    out = {"dh": empty(p.h.shape, "fp32"), "dw1": empty(p.w1.shape, "fp32"), "dweights": empty(p.dslot.shape, "fp32")}
    h = zeros(p.h.shape, "fp32")
    with pytest.raises(libmoe.InvalidArgument) as error:
        ctx.run("expert_mlp_bwd", p.case.desc(),
                {**run.routing, **run.weights, "x": run.x, "dy": run.dy, "h": h, **out} | args)
    assert message in str(error.value)
    assert all(poisoned(x).all() for x in out.values())


@pytest.mark.parametrize("args,message", [
    ({"x": None}, "for the gradient of W1"), ({"dh": None}, "for the gradients of fc1"),
    ({"weighted_act": None}, "for the gradient of W2"), ({"dy": None}, "for the gradients of fc2")])
def test_misuse_of_wgrad(ctx, rng, guarded, args, message):
    p, run = simple(ctx, rng, guarded)
    out = {"dw1": empty(p.w1.shape, "fp32"), "dw2": empty(p.w2.shape, "fp32")}
    given = {"x": run.x, "dy": run.dy, "dh": zeros(p.h.shape, "fp32"), "weighted_act": zeros(p.weighted_act.shape, "fp32")}
    with pytest.raises(libmoe.InvalidArgument, match=message):
        ctx.run("expert_mlp_wgrad", p.case.desc(), {**run.routing, **given, **out} | args)
    assert all(poisoned(x).all() for x in out.values())


def test_halves_apart_cannot_be_interleaved(ctx, rng, guarded):
    p, run = simple(ctx, rng, guarded, split=True)
    run.weights |= run.halves("w1", array(p.w1, "fp32"))
    with pytest.raises(libmoe.InvalidArgument, match="w1_up is given; absent with MOE_GATE_INTERLEAVED"):
        ctx.run("expert_mlp_fwd", p.case.desc(gate_order=ORDERS["GATE_INTERLEAVED"]),
                {**run.routing, **run.weights, "x": run.x, "y": empty(p.y.shape, "fp32")})


def test_workspace_too_small(ctx, rng, guarded):
    p, run = simple(ctx, rng, guarded)
    args = {**run.routing, **run.weights, "x": run.x, "y": empty(p.y.shape, "fp32")}
    memory = zeros(1024, "uint8")
    start = -(memory.ctypes.data if on_cpu() else memory.data_ptr()) % 256
    with pytest.raises(libmoe.InvalidArgument, match="workspace_size is 256; at least"):
        ctx.run("expert_mlp_fwd", p.case.desc(), args, workspace=memory[start:start + 256])
