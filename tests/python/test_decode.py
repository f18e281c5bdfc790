"""Few rows through many weights, which a GPU has kernels of its own for, against the reference of expert_mlp_reference.py:
every activation, layout and option at widths that those kernels take, and at some that they leave to others."""

import numpy as np
import pytest

from expert_mlp_reference import LAYOUTS, WEIGHTS_AT, Plan, Problem, Run, draw
from harness import ROUTINGS, array, bits, empty, host
from test_activation import ACTIVATIONS, GATED, ORDERS

HALVES = ["bf16", "fp16"]
ALL_ORDERS = [("GATE_FIRST", 1), ("UP_FIRST", 1), ("GATE_INTERLEAVED", 1), ("GATE_INTERLEAVED", 8), ("GATE_INTERLEAVED", 2)]


def forward(ctx, rng, guarded, tokens=None, routing=None, experts=None, **fixed):
    """One forward of a random problem in 16 bits without h."""
    experts = experts or int(rng.choice([3, 8, 40]))
    top_k = int(rng.integers(1, min(4, experts) + 1))
    # Below 32 rows an expert.
    tokens = tokens or int(rng.integers(1, min(70, 32 * experts // top_k)))
    routing = routing or str(rng.choice(list(ROUTINGS)))
    plan = Plan(ROUTINGS[routing](rng, tokens, experts, top_k), experts, int(rng.integers(tokens // 2, tokens + 1)),
                int(rng.choice([1, 1, 4])), int(rng.integers(0, 9)))
    order, block = fixed.pop("order", None) or ALL_ORDERS[rng.integers(len(ALL_ORDERS))]
    activation = fixed.get("activation", str(rng.choice(list(ACTIVATIONS))))
    if activation not in GATED:
        order, block = "GATE_FIRST", 1
    split = activation in GATED and order != "GATE_INTERLEAVED" and bool(rng.random() < 0.3)
    dtype = str(rng.choice(HALVES))
    wide = [dtype, "fp32"]
    options = dict(plan=plan, dtype=dtype, bias_dtype=str(rng.choice(wide)), y_dtype=str(rng.choice(wide)), d=int(rng.choice([8, 64, 72, 200, 328])),
                   f=int(rng.choice([8, 16, 48, 136, 296])), weights_dtype=str(rng.choice(["fp32", *HALVES])), order=order, block=block, activation=activation, split=split,
                   keep_h=False, pad=int(rng.choice([0, 8])))
    case = draw(rng, **{**options, **fixed})
    try:
        run = Run(ctx, Problem(rng, case), guarded)
        run.forward()
    except BaseException:
        print({**vars(case), "plan": (plan.ids.shape, plan.tokens, plan.offsets, plan.sizes)})
        raise


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_activation(ctx, rng, guarded, activation, layout):
    for order in ALL_ORDERS if activation in GATED else ALL_ORDERS[:1]:
        forward(ctx, rng, guarded, activation=activation, w1_layout=layout, order=order)


@pytest.mark.parametrize("weights_at", list(WEIGHTS_AT))
@pytest.mark.parametrize("rows", [(False, False), (True, False), (False, True), (True, True)])
def test_every_layout_of_rows(ctx, rng, guarded, weights_at, rows):
    for weights in ("none", "slot", "row"):
        forward(ctx, rng, guarded, weights_at=weights_at, weights=weights, input_rows=rows[0], output_rows=rows[1])


@pytest.mark.parametrize("routing", list(ROUTINGS))
@pytest.mark.parametrize("tokens", [1, 2, 9, 33, 64])
def test_few_and_more_tokens(ctx, rng, guarded, routing, tokens):
    """One expert with all tokens takes them in several passes."""
    forward(ctx, rng, guarded, tokens=tokens, routing=routing, experts=40)


@pytest.mark.parametrize("index", range(30))
def test_random_options(ctx, rng, guarded, index):
    forward(ctx, rng, guarded)


@pytest.mark.parametrize("d,f", [(65, 40), (72, 37), (1, 1), (24, 12)])
def test_widths_that_are_left_to_other_kernels(ctx, rng, guarded, d, f):
    for layout in LAYOUTS:
        forward(ctx, rng, guarded, d=d, f=f, order=("GATE_FIRST", 1), w1_layout=layout, w2_layout=layout, pad=0)


def plain(ctx, rng, guarded, **changes):
    """(problem, run) of a plain case at widths that make several tiles a block and an expert."""
    plan = Plan(ROUTINGS["skewed"](rng, 60, 24, 4), 24, 60)
    fixed = dict(plan=plan, dtype="bf16", d=264, f=152, activation="SWIGLU", order="GATE_FIRST", block=1, constants={},
                 weights_at="COMBINE", weights="slot", weights_dtype="fp32", input_rows=False, output_rows=False,
                 w1_layout="OUT_IN", w2_layout="OUT_IN", split=False, b1=False, b2=False, missing=set(), pad=0,
                 sizes_given=False, y_dtype="bf16", map_dtype="int32", add=["overwrite"] * 4, keep_h=False)
    p = Problem(rng, draw(rng, **{**fixed, **changes}))
    run = Run(ctx, p, guarded)
    for name in ("w1", "w2"):
        run.weights[name] = array(getattr(p, name), "bf16")
    return p, run


def test_same_bits_again(ctx, rng, guarded):
    p, run = plain(ctx, rng, guarded)
    results = []
    for _ in range(5):
        y = empty(p.y.shape, "bf16")
        run.call("expert_mlp_fwd", {**run.routing, **run.weights, "x": run.x, "y": y})
        results.append(bits(y))
    assert all(np.array_equal(results[0], other) for other in results[1:])


def test_weights_at_odd_addresses(ctx, rng, guarded):
    """Experts by pointers to memory that is aligned to no more than an element."""
    if not hasattr(empty((1,), "bf16"), "data_ptr"):
        pytest.skip("addresses of torch tensors")
    p, run = plain(ctx, rng, guarded)
    y = empty(p.y.shape, "bf16")
    run.call("expert_mlp_fwd", {**run.routing, **run.weights, "x": run.x, "y": y})
    kept = []

    def moved(stacked):
        pointers = []
        for matrix in stacked:
            memory = empty((matrix.numel() + 1,), "bf16")
            memory[1:] = matrix.reshape(-1)
            kept.append(memory)
            pointers.append(memory[1:].data_ptr())
        table = array(np.array(pointers), "int64")
        kept.append(table)
        return {"pointers": table, "dtype": "bf16"}

    again = guarded(p.y.shape, "bf16")
    run.call("expert_mlp_fwd", {**run.routing, "w1": moved(run.weights["w1"]), "w2": moved(run.weights["w2"]), "x": run.x,
                                "y": again})
    assert np.array_equal(host(y), host(again))
