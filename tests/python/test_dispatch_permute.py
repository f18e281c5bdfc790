"""moe_dispatch_fwd/_bwd and moe_combine_fwd/_bwd against loops in float64."""

from types import SimpleNamespace

import numpy as np
import pytest

import libmoe
from dispatch_reference import padded_map, plan_reference, random_choice
from harness import (
    ROUTINGS, array, assert_close, bits, empty, host, on_cpu, poisoned, report, report_fields, rounded,
)

FLOATS = ["fp32", "bf16", "fp16", "fp64"]
KINDS = ["none", "slot", "row", "dense"]


def dtypes():
    return FLOATS if on_cpu() else FLOATS[:3]


def random_case(rng, **fixed):
    """A plan and sizes: tokens and rows bounded from above, the maps' tails full of nonsense."""
    case = SimpleNamespace(
        tokens=int(rng.choice([0, 1, 5, 130])), hidden=int(rng.choice([1, 3, 8, 24, 64, 200, 2048])),
        experts=int(rng.choice([1, 7, 16, 50])), top_k=int(rng.choice([1, 2, 3, 6, 8, 40])),
        alignment=int(rng.choice([1, 1, 16])),
        csr=bool(rng.random() < 0.4), begin=0, x="fp32", w="fp32", spare=int(rng.choice([0, 0, 9])),
        rows_per_group=int(rng.choice([0, 0, 0, 13])),
    )
    vars(case).update(fixed)
    case.begin = int(rng.integers(0, case.experts)) if rng.random() < 0.4 else 0
    case.groups = case.experts - case.begin
    if case.csr:
        case.top_k = min(case.top_k, case.experts)
        chosen = [np.flatnonzero(row).tolist() for row in random_choice(rng, case.tokens, case.experts, case.top_k)]
    else:
        chosen = rng.integers(-1, case.experts + 1, (case.tokens, case.top_k)).tolist()
    group_of = [e - case.begin if e >= case.begin else -1 for e in range(case.experts)]
    case.plan = plan_reference(
        chosen, case.experts, case.top_k, group_of=group_of, alignment=case.alignment,
        rows_per_group=case.rows_per_group,
    )
    group_of_row = np.searchsorted(case.plan.group_offsets, np.arange(case.plan.num_rows), "right") - 1
    case.expert_of_row = case.begin + group_of_row.astype(int)
    case.bound = case.tokens + case.spare
    case.rows = case.plan.num_rows + case.spare
    case.slots = len(case.plan.row_of_slot)
    case.desc = {
        "dtype": getattr(libmoe, f"DTYPE_{case.x.upper()}"), "num_tokens": case.bound, "hidden_size": case.hidden,
        "top_k": case.top_k, "rows_max": case.rows, "num_experts": case.experts, "num_groups": case.groups,
        "expert_begin": case.begin,
    }
    kind = lambda: str(rng.choice(["int32", "int64"]))  # noqa: E731
    plan = case.plan
    case.maps = {
        "group_offsets": array(plan.group_offsets), "token_of_row": padded_map(plan.token_of_row, case.rows, kind()),
        "slot_of_row": padded_map(plan.slot_of_row, case.rows, kind()),
        "row_of_slot": padded_map(plan.row_of_slot, case.bound * case.top_k, kind()),
        "slot_offsets": padded_map(plan.slot_offsets, case.bound + 1, kind()) if case.csr else None,
        "num_tokens": array([case.tokens], kind()) if case.spare else None,
    }
    return case


def args(case, names, **others):
    return {name: case.maps[name] for name in names.split()} | others


def floats(rng, shape, dtype, used=None):
    """Random values of `dtype`: as float64, and on the device with NaN behind the `used` first rows of them."""
    values = rounded(rng.standard_normal(shape), dtype)
    given = values.copy()
    if used is not None:
        given[used:] = np.nan
    return values, array(given, dtype)


def pitched(rng, given):
    """The same matrix, sometimes with columns of NaN between its rows."""
    if rng.random() < 0.5 or given.shape[0] == 0:
        return given
    extra = int(rng.choice([1, 8]))
    name = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    wide = empty((given.shape[0], given.shape[1] + extra), name[str(given.dtype).removeprefix("torch.")])
    wide[:, :given.shape[1]] = given
    return wide[:, :given.shape[1]]


def weights(rng, case, kind):
    """Weights of a kind: the arguments, and the weight of each slot and row in float64."""
    plan, number = case.plan, case.slots
    if kind == "none":
        return {}, np.ones(number), np.where(plan.slot_of_row >= 0, 1.0, 0.0)
    if kind == "dense":
        values, given = floats(rng, (case.bound, case.experts), case.w, case.tokens)
        of_row = np.array([values[t, e] if t >= 0 else 0 for t, e in zip(plan.token_of_row, case.expert_of_row)])
        name, given = "weights_dense", pitched(rng, given)
    elif kind == "row":
        values, given = floats(rng, case.rows, case.w, plan.num_rows)
        of_row, name = np.where(plan.slot_of_row >= 0, values[:plan.num_rows], 0.0), "row_weights"
    else:
        values, given = floats(rng, case.bound * case.top_k, case.w, number)
        of_row = np.array([values[s] if s >= 0 else 0.0 for s in plan.slot_of_row])
        name = "weights"
    of_slot = np.array([of_row[r] if r >= 0 else 0.0 for r in plan.row_of_slot])
    return {name: given}, of_slot, of_row


def slots_of(case, token):
    return range(case.plan.slot_offsets[token], case.plan.slot_offsets[token + 1])


def sum_rows(case, rows, weight_of_slot):
    y = np.zeros((case.tokens, case.hidden))
    for token in range(case.tokens):
        for slot in slots_of(case, token):
            row = case.plan.row_of_slot[slot]
            if row >= 0:
                y[token] += weight_of_slot[slot] * rows[row]
    return y


def gradients_of(case, of_row):
    """A gradient a row (0 for padding) as one a slot, and dense."""
    slot = np.array([of_row[row] if row >= 0 else 0.0 for row in case.plan.row_of_slot])
    dense = np.zeros((case.tokens, case.experts))
    for row, token in enumerate(case.plan.token_of_row):
        if token >= 0:
            dense[token, case.expert_of_row[row]] += of_row[row]
    return slot, dense


def pitch(rng, case):
    return case.hidden + int(rng.choice([0, 8, 3]))


def check(out, reference, dtype, what, factor=1.0):
    """The first rows are the reference's, the others were not written."""
    used = len(reference)
    assert_close(host(out)[:used], reference, dtype, what, factor)
    assert poisoned(out)[used:].all(), f"{what}: written beyond its {used} rows"


def cases(rng, number=8, **fixed):
    for _ in range(number):
        yield random_case(rng, x=str(rng.choice(dtypes())), w=str(rng.choice(dtypes())), **fixed)


@pytest.mark.parametrize("kind", ["none", "slot", "dense"])
@pytest.mark.parametrize("token_major", [False, True])
def test_dispatch_fwd(ctx, rng, guarded, kind, token_major):
    for case in cases(rng):
        plan, status = case.plan, report()
        x, given = floats(rng, (case.bound, case.hidden), case.x, case.tokens)
        weight, _, row_weight = weights(rng, case, kind)
        rows = guarded((case.rows, case.hidden), case.x, pitch(rng, case))
        row_weights = guarded(case.rows, case.w)
        maps = "group_offsets token_of_row slot_of_row num_tokens" + " row_of_slot slot_offsets" * token_major
        ctx.run("dispatch_fwd", case.desc, args(
            case, maps, x=pitched(rng, given), rows=rows, row_weights=row_weights, report=status, **weight
        ))
        expected = np.array([x[t] if t >= 0 else np.zeros(case.hidden) for t in plan.token_of_row])
        check(rows, expected.reshape(-1, case.hidden), "fp64", "rows")
        check(row_weights, row_weight, "fp64", "row_weights")
        assert report_fields(status)[0] == 0
        guarded.check()


@pytest.mark.parametrize("dtype", ["uint8", "fp8_e4m3", "int32", "int64", "fp16"])
@pytest.mark.parametrize("token_major", [False, True])
def test_dispatch_copies_any_dtype(ctx, rng, guarded, dtype, token_major):
    case = random_case(rng, tokens=50, hidden=int(rng.choice([1, 7, 16, 48, 160])))
    x = array(rng.integers(0, 100, (50 + case.spare, case.hidden)), dtype)
    rows = guarded((case.rows, case.hidden), dtype)
    maps = "group_offsets token_of_row slot_of_row num_tokens" + " row_of_slot slot_offsets" * token_major
    desc = case.desc | {"dtype": getattr(libmoe, f"DTYPE_{dtype.upper()}")}
    ctx.run("dispatch_fwd", desc, args(case, maps, x=x, rows=rows))
    expected = [host(x)[t] if t >= 0 else np.zeros(case.hidden) for t in case.plan.token_of_row]
    if expected:
        np.testing.assert_array_equal(host(rows)[:case.plan.num_rows], np.array(expected))


@pytest.mark.parametrize("scale_dtype", ["fp32", "uint8"])
@pytest.mark.parametrize("kind", ["SCALE_ROW", "SCALE_BLOCK_1X128"])
def test_dispatch_carries_scales(ctx, rng, guarded, kind, scale_dtype):
    case = random_case(rng, tokens=60, hidden=int(rng.choice([1, 128, 300])))
    columns = 1 if kind == "SCALE_ROW" else -(-case.hidden // 128)
    scale = array(rng.integers(1, 200, (case.bound, columns)), scale_dtype)
    rows = guarded((case.rows, case.hidden), "fp8_e4m3")
    scales = guarded((case.rows, columns), scale_dtype, columns + 2)

    def tensor(data, scale, pitch):
        code = libmoe.DTYPE_FP32 if scale_dtype == "fp32" else libmoe.DTYPE_E8M0
        address = scale.data_ptr() if hasattr(scale, "data_ptr") else scale.ctypes.data
        return {
            "data": data, "scale_kind": getattr(libmoe, kind), "scale_dtype": code, "scale": address,
            "scale_row_pitch": pitch,
        }

    x = array(rng.standard_normal((case.bound, case.hidden)), "fp8_e4m3")
    desc = case.desc | {"dtype": libmoe.DTYPE_FP8_E4M3}
    ctx.run("dispatch_fwd", desc, args(
        case, "group_offsets token_of_row num_tokens", x=tensor(x, scale, 0), rows=tensor(rows, scales, columns + 2)
    ))
    for out, given in (rows, x), (scales, scale):
        expected = [host(given)[t] if t >= 0 else 0 * host(given)[0] for t in case.plan.token_of_row]
        np.testing.assert_array_equal(host(out)[:case.plan.num_rows], np.array(expected).reshape(-1, out.shape[1]))
        assert poisoned(out)[case.plan.num_rows:].all()


MODES = ["overwrite", "add", "device 0", "device 1"]


def output(rng, guarded, case, mode):
    """A token tensor for a mode: the array, the mode as an argument, what it held before (zero if overwritten)."""
    y = guarded((case.bound, case.hidden), case.x, pitch(rng, case))
    adds = mode in ("add", "device 1")
    held = rounded(rng.standard_normal((case.tokens, case.hidden)), case.x)
    if adds and case.tokens:
        y[:case.tokens] = array(held, case.x)
    return y, array([1 if adds else 0], "int32") if "device" in mode else mode, held if adds else 0 * held


@pytest.mark.parametrize("mode", MODES)
def test_dispatch_bwd(ctx, rng, guarded, mode):
    for case in cases(rng):
        status = report()
        drows, given = floats(rng, (case.rows, case.hidden), case.x, case.plan.num_rows)
        gradient, given_gradient = floats(rng, case.rows, case.w, case.plan.num_rows)
        dx, dx_mode, held = output(rng, guarded, case, mode)
        dweights = guarded(case.bound * case.top_k, case.w)
        dense = guarded((case.bound, case.experts), case.w, case.experts + int(rng.choice([0, 3])))
        out = {"dx": dx, "dx_mode": dx_mode, "dweights": dweights, "dweights_dense": dense}
        ctx.run("dispatch_bwd", case.desc, args(
            case, "row_of_slot slot_offsets group_offsets num_tokens", drows=pitched(rng, given),
            drow_weights=given_gradient, report=status, **out
        ))
        check(dx, held + sum_rows(case, drows, np.ones(case.slots)), case.x, "dx")
        of_slot, of_dense = gradients_of(case, np.where(case.plan.slot_of_row >= 0, gradient[:case.plan.num_rows], 0))
        check(dweights, of_slot, case.w, "dweights")
        check(dense, of_dense, case.w, "dweights_dense")
        assert report_fields(status)[0] == 0
        guarded.check()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("top_k", [32, 100])
def test_gradients_of_an_expert_chosen_often_are_rounded_once(ctx, rng, guarded, dtype, top_k):
    case = random_case(rng, x="fp32", w=dtype, tokens=5, hidden=8, experts=3, top_k=top_k, csr=False, rows_per_group=0)
    gradient, given = floats(rng, case.rows, dtype, case.plan.num_rows)
    dense = guarded((case.bound, case.experts), dtype)
    ctx.run("dispatch_bwd", case.desc, args(
        case, "row_of_slot group_offsets num_tokens", drows=floats(rng, (case.rows, case.hidden), "fp32")[1], drow_weights=given,
        dweights_dense=dense
    ))
    sums = np.zeros((case.tokens, case.experts), np.float32)
    for slot, row in enumerate(case.plan.row_of_slot):
        if row >= 0:
            sums[slot // case.top_k, case.expert_of_row[row]] += np.float32(gradient[row])
    np.testing.assert_array_equal(host(dense)[:case.tokens].astype(np.float64), rounded(sums, dtype))
    guarded.check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_combine_fwd(ctx, rng, guarded, kind, mode):
    for case in cases(rng):
        status = report()
        rows, given = floats(rng, (case.rows, case.hidden), case.x, case.plan.num_rows)
        weight, of_slot, _ = weights(rng, case, kind)
        y, y_mode, held = output(rng, guarded, case, mode)
        maps = "row_of_slot slot_offsets num_tokens" + " group_offsets" * (kind == "dense" or bool(rng.random() < 0.5))
        ctx.run("combine_fwd", case.desc, args(
            case, maps, rows=pitched(rng, given), y=y, y_mode=y_mode, report=status, **weight
        ))
        check(y, held + sum_rows(case, rows, of_slot), case.x, "y")
        assert report_fields(status)[0] == 0
        guarded.check()


@pytest.mark.parametrize("kind", KINDS)
def test_combine_bwd(ctx, rng, guarded, kind):
    for case in cases(rng, 16):
        plan, status = case.plan, report()
        dy, given_dy = floats(rng, (case.bound, case.hidden), case.x, case.tokens)
        rows, given_rows = floats(rng, (case.rows, case.hidden), case.x, plan.num_rows)
        # Padding may hold anything, even NaN.
        padding = np.flatnonzero(plan.token_of_row < 0)
        if len(padding):
            given_rows[padding] = np.nan
        weight, _, of_row = weights(rng, case, kind)
        out = {
            "drows": guarded((case.rows, case.hidden), case.x, pitch(rng, case)),
            "dweights": guarded(case.bound * case.top_k, case.w),
            "drow_weights": guarded(case.rows, case.w),
            "dweights_dense": guarded((case.bound, case.experts), case.w, case.experts + int(rng.choice([0, 3]))),
        }
        wanted = {name: value for name, value in out.items() if rng.random() < 0.7}
        needs_slots = kind == "slot" or wanted.keys() & {"dweights", "dweights_dense"}
        maps = "group_offsets token_of_row num_tokens" + " slot_of_row" * (kind == "slot")
        if needs_slots or rng.random() < 0.5:
            maps += " row_of_slot slot_offsets"
        if wanted.keys() - {"drows"}:
            wanted["rows"] = pitched(rng, given_rows)
        ctx.run("combine_bwd", case.desc, args(
            case, maps, dy=pitched(rng, given_dy), report=status, **weight, **wanted
        ))
        expected = np.zeros((plan.num_rows, case.hidden))
        dot = np.zeros(plan.num_rows)
        for row, token in enumerate(plan.token_of_row):
            if token >= 0:
                expected[row] = of_row[row] * dy[token]
                dot[row] = dy[token] @ rows[row]
        of_slot, of_dense = gradients_of(case, dot)
        tolerance = case.w if case.x != "fp64" or case.w != "fp64" else "fp64"
        tolerance = tolerance if tolerance != "fp64" else ("fp64" if case.x == "fp64" else "fp32")
        references = {
            "drows": (expected, case.x), "dweights": (of_slot, tolerance), "drow_weights": (dot, tolerance),
            "dweights_dense": (of_dense, tolerance),
        }
        for name, (reference, dtype) in references.items():
            if name in wanted:
                check(out[name], reference, dtype, name, factor=4)
            else:
                assert poisoned(out[name]).all()
        assert report_fields(status)[0] == 0
        guarded.check()


def test_round_trip(ctx, rng):
    """The plan's own maps: dispatch and combine of all experts give K times the tokens."""
    tokens, experts, top_k, hidden = 300, 16, 4, 136
    ids = ROUTINGS["skewed"](rng, tokens, experts, top_k)
    offsets, row_of_slot = empty(experts + 1, "int64"), empty((tokens, top_k), "int32")
    slot_of_row, token_of_row = empty(tokens * top_k, "int32"), empty(tokens * top_k, "int32")
    maps = {"group_offsets": offsets, "row_of_slot": row_of_slot}
    ctx.run("dispatch_plan", {"num_tokens": tokens, "num_experts": experts, "top_k": top_k}, {
        "ids": array(ids), "slot_of_row": slot_of_row, "token_of_row": token_of_row, **maps
    })
    desc = {
        "dtype": libmoe.DTYPE_FP32, "num_tokens": tokens, "hidden_size": hidden, "top_k": top_k,
        "rows_max": tokens * top_k, "num_groups": experts,
    }
    x = rounded(rng.standard_normal((tokens, hidden)), "fp32")
    rows, y = empty((tokens * top_k, hidden), "fp32"), empty((tokens, hidden), "fp32")
    ctx.run("dispatch_fwd", desc, {
        "x": array(x, "fp32"), "rows": rows, "token_of_row": token_of_row, "group_offsets": offsets
    })
    ctx.run("combine_fwd", desc, {"rows": rows, "y": y, "row_of_slot": row_of_slot})
    assert_close(y, top_k * x, "fp32")


def random_bits(rng, length, dtype):
    """Entries of which many are out of range, some by a little, some by a lot."""
    kind = np.iinfo(dtype)
    small = rng.integers(-4, 400, length)
    large = rng.integers(kind.min, kind.max, length, dtype=np.int64, endpoint=True)
    return array(np.where(rng.random(length) < 0.7, small, large), dtype)


@pytest.mark.parametrize(
    "bad", ["group_offsets", "token_of_row", "slot_of_row", "row_of_slot", "slot_offsets", "num_tokens"]
)
def test_maps_that_lead_astray(ctx, rng, guarded, bad):
    """Nothing is written outside and nothing crashes, whatever the maps hold; and it is reported."""
    faults = {
        "group_offsets": libmoe.FAULT_GROUP_OFFSET, "token_of_row": libmoe.FAULT_TOKEN_INDEX,
        "slot_of_row": libmoe.FAULT_SLOT_INDEX, "row_of_slot": libmoe.FAULT_ROW_INDEX,
        "slot_offsets": libmoe.FAULT_SLOT_INDEX, "num_tokens": libmoe.FAULT_COUNT,
    }
    for _ in range(10):
        case = random_case(rng, tokens=100, hidden=24, csr=True, spare=3, experts=12, top_k=3, rows_per_group=0)
        kind = "int64" if bad == "group_offsets" else str(rng.choice(["int32", "int64"]))
        length = max(len(case.maps[bad]), 1)
        case.maps[bad] = random_bits(rng, length, kind)
        if bad == "num_tokens":
            case.maps[bad] = array([int(rng.choice([-1, -2**31, 104, 2**31 - 1]))], kind)
        tokens, rows, slots = case.bound, case.rows, case.bound * case.top_k
        x = array(rng.standard_normal((tokens, 24)), "fp32")
        r = array(rng.standard_normal((rows, 24)), "fp32")
        gradient, dense = array(np.ones(rows), "fp32"), array(np.ones((tokens, 12)), "fp32")
        slot_weights = array(np.ones(slots), "fp32")
        status = [report() for _ in range(6)]
        out = lambda *shape: guarded(shape, "fp32")  # noqa: E731
        every = "group_offsets token_of_row slot_of_row row_of_slot slot_offsets num_tokens"
        by_slot = "row_of_slot slot_offsets num_tokens group_offsets"
        ctx.run("dispatch_fwd", case.desc, args(
            case, "group_offsets token_of_row slot_of_row num_tokens", x=x, rows=out(rows, 24), weights=slot_weights,
            row_weights=out(rows), report=status[0]))
        ctx.run("dispatch_fwd", case.desc, args(
            case, every, x=x, rows=out(rows, 24), weights_dense=dense, row_weights=out(rows), report=status[1]))
        ctx.run("dispatch_bwd", case.desc, args(
            case, by_slot, drows=r, dx=out(tokens, 24), drow_weights=gradient, dweights=out(slots),
            dweights_dense=out(tokens, 12), report=status[2]))
        ctx.run("combine_fwd", case.desc, args(
            case, by_slot, rows=r, y=out(tokens, 24), weights_dense=dense, report=status[3]))
        ctx.run("combine_bwd", case.desc, args(
            case, every, dy=x, rows=r, drows=out(rows, 24), dweights=out(slots), drow_weights=out(rows),
            dweights_dense=out(tokens, 12), weights=slot_weights, report=status[4]))
        ctx.run("combine_bwd", case.desc, args(
            case, every, dy=x, rows=r, drows=out(rows, 24), dweights_dense=out(tokens, 12), weights_dense=dense,
            report=status[5]))
        guarded.check()
        guarded.buffers.clear()
        if case.plan.num_rows > 10:
            assert faults[bad] in [report_fields(one)[0] for one in status]


def test_repeats_are_bitwise_equal(ctx, rng):
    case = random_case(rng, tokens=1000, hidden=512, experts=16, top_k=6, csr=False, x="bf16", w="fp32", spare=0)
    rows = array(rng.standard_normal((case.rows, 512)), "bf16")
    dy = array(rng.standard_normal((case.bound, 512)), "bf16")
    weight, _, _ = weights(rng, case, "slot")
    seen = set()
    for _ in range(5):
        y, dweights = empty((case.bound, 512), "bf16"), empty(case.slots, "fp32")
        drows = empty((case.rows, 512), "bf16")
        ctx.run("combine_fwd", case.desc, args(case, "row_of_slot group_offsets", rows=rows, y=y, **weight))
        every = "group_offsets token_of_row slot_of_row row_of_slot"
        ctx.run("combine_bwd", case.desc, args(case, every, dy=dy, rows=rows, drows=drows, dweights=dweights, **weight))
        seen.add(bits(y).tobytes() + bits(dweights).tobytes() + bits(drows)[:case.plan.num_rows].tobytes())
    assert len(seen) == 1


def test_bad_arguments(ctx, rng, guarded):
    case = random_case(rng, tokens=20, hidden=8, experts=4, top_k=2, csr=False, spare=0, rows_per_group=16)
    x, rows = array(np.zeros((20, 8)), "fp32"), array(np.zeros((case.rows, 8)), "fp32")
    y, out = guarded((20, 8), "fp32"), guarded((case.rows, 8), "fp32")
    w = array(np.zeros(40), "fp32")
    calls = {
        "dispatch_fwd": args(case, "group_offsets token_of_row", x=x, rows=out),
        "dispatch_bwd": args(case, "row_of_slot", drows=rows, dx=y),
        "combine_fwd": args(case, "row_of_slot", rows=rows, y=y),
        "combine_bwd": args(case, "group_offsets token_of_row", dy=x, drows=out),
    }
    bad = {
        "dtype": [0, 99], "num_tokens": [-1, 2**41], "hidden_size": [0, -1, 2**31], "top_k": [0, -1],
        "rows_max": [-1, 2**41], "num_experts": [-1, 2**21], "num_groups": [-1, 2**21], "expert_begin": [-1, 2**21],
    }

    def refused(name, words, desc=case.desc, **changes):
        given = {k: v for k, v in (calls[name] | changes).items() if v is not None}
        with pytest.raises(libmoe.InvalidArgument, match=words):
            ctx.run(name, desc, given)
        assert poisoned(y).all() and poisoned(out).all()

    for name in calls:
        for field, values in bad.items():
            for value in values:
                refused(name, f"desc.{field} is {value};", case.desc | {field: value})
        for argument in calls[name].keys() - {"dx", "drows"}:
            refused(name, f"args.{argument}(.data)? is NULL", **{argument: None})
    refused("dispatch_fwd", "args.slot_of_row.data is NULL; required with args.weights", weights=w, row_weights=w)
    refused("dispatch_fwd", "args.row_weights.data is NULL; required with weights", weights=w)
    half = array(np.zeros((case.rows, 8)), "fp16")
    refused("dispatch_fwd", "args.rows.dtype is FP16; one of MOE_DTYPE_FP32", rows=half)
    refused("dispatch_bwd", "args.drow_weights.data is NULL; required for the gradient", dweights=w)
    refused("dispatch_bwd", "args.group_offsets is NULL; required for", dweights_dense=w, drow_weights=w)
    refused("combine_fwd", "at most one", weights=w, row_weights=w)
    refused("combine_fwd", "args.group_offsets is NULL; required with", weights_dense=w)
    refused("combine_bwd", "args.rows.data is NULL; required for", dweights=w, row_of_slot=case.maps["row_of_slot"])
    refused("combine_bwd", "args.row_of_slot.data is NULL; required for", dweights=w, rows=rows)
    refused("combine_fwd", "desc.dtype is INT32; one of", case.desc | {"dtype": libmoe.DTYPE_INT32})
    fewer = case.desc | {"expert_begin": case.experts}
    dense = {"weights_dense": w, "group_offsets": case.maps["group_offsets"]}
    refused("combine_fwd", "desc.expert_begin \\+ desc.num_groups is", fewer, **dense)


def test_fp64_is_the_cpus(ctx):
    if on_cpu():
        pytest.skip("the CPU computes in fp64")
    desc = {"dtype": libmoe.DTYPE_FP64, "num_tokens": 1, "hidden_size": 8, "top_k": 1, "rows_max": 1}
    x = empty((1, 8), "fp64")
    with pytest.raises(libmoe.Unsupported, match="FP64"):
        ctx.run("combine_fwd", desc, {"rows": x, "y": empty((1, 8), "fp64"), "row_of_slot": array([0], "int32")})
