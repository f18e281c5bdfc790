"""moe_dispatch_plan against plain Python."""

import numpy as np
import pytest

import libmoe
from dispatch_reference import bit_mask, plan_reference, prefix, random_choice
from harness import ROUTINGS, array, empty, host, poisoned, report, report_fields

ALIGNMENTS = (1, 1, 2, 16, 128, 256)


def run_plan(ctx, guarded, desc, choice, map_dtype, rows=None, true_tokens=None, **args):
    """Runs the plan into guarded outputs; all maps of them are asked for."""
    rows = ctx.query("dispatch_rows_max", desc) if rows is None else rows
    tokens, slots = desc["num_tokens"], desc["num_tokens"] * (desc.get("top_k") or desc["num_experts"])
    local = desc.get("num_local_experts") or desc["num_experts"] - desc.get("expert_begin", 0)
    out = {
        "group_offsets": guarded(local + 1, "int64"),
        "group_sizes": guarded(local, "int64"),
        "slot_offsets": guarded(tokens + 1, map_dtype),
        "row_of_slot": guarded(slots, map_dtype),
        "slot_of_row": guarded(rows, map_dtype),
        "token_of_row": guarded(rows, map_dtype),
    }
    ctx.run("dispatch_plan", desc, {**choice, **out, "num_tokens": true_tokens, **args})
    return out


def check(out, reference):
    tokens = len(reference.slot_offsets) - 1
    used = {"slot_offsets": tokens + 1, "row_of_slot": len(reference.row_of_slot)}
    used |= {"slot_of_row": reference.num_rows, "token_of_row": reference.num_rows}
    for name, value in out.items():
        expected = getattr(reference, name)
        length = used.get(name, len(expected))
        np.testing.assert_array_equal(prefix(value, length), expected, err_msg=name)
        assert poisoned(value)[length:].all(), f"{name} is written beyond its {length} entries"


def id_dtype(rng):
    return str(rng.choice(["int32", "int64"]))


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("experts,top_k", [(1, 1), (8, 2), (128, 8), (60, 4), (1500, 3)])
def test_ids(ctx, rng, guarded, routing, experts, top_k):
    tokens = int(rng.choice([1, 7, 300, 2000]))
    ids = ROUTINGS[routing](rng, tokens, experts, top_k)
    alignment = int(rng.choice(ALIGNMENTS))
    desc = {"num_tokens": tokens, "num_experts": experts, "top_k": top_k, "alignment": alignment}
    status = report()
    out = run_plan(ctx, guarded, desc, {"ids": array(ids, id_dtype(rng))}, id_dtype(rng), report=status)
    check(out, plan_reference(ids.tolist(), experts, top_k, alignment=alignment))
    assert report_fields(status)[0] == 0


@pytest.mark.parametrize("kind", ["byte_mask", "bit_mask"])
@pytest.mark.parametrize("experts", [1, 5, 32, 33, 200])
def test_masks(ctx, rng, guarded, kind, experts):
    tokens, top_k = int(rng.choice([1, 40, 500])), int(rng.integers(1, experts + 1))
    mask = random_choice(rng, tokens, experts, top_k)
    chosen = [np.flatnonzero(row).tolist() for row in mask]
    given = array(mask if kind == "byte_mask" else bit_mask(mask))
    desc = {"num_tokens": tokens, "num_experts": experts, "top_k": int(rng.choice([0, top_k]))}
    status = report()
    out = run_plan(ctx, guarded, desc, {kind: given}, id_dtype(rng), report=status)
    check(out, plan_reference(chosen, experts, experts))
    assert report_fields(status)[0] == 0


def test_mask_with_too_many_experts(ctx, rng, guarded):
    tokens, experts, top_k = 50, 12, 3
    mask = random_choice(rng, tokens, experts, top_k)
    mask[17, :] = 1
    chosen = [np.flatnonzero(row).tolist() for row in mask]
    for kind, given in ("byte_mask", mask), ("bit_mask", bit_mask(mask)):
        status = report()
        desc = {"num_tokens": tokens, "num_experts": experts, "top_k": top_k}
        out = run_plan(ctx, guarded, desc, {kind: array(given)}, "int32", report=status)
        check(out, plan_reference(chosen, experts, top_k))
        assert report_fields(status) == (libmoe.FAULT_OVERFLOW, top_k, experts)


def test_random_descriptions(ctx, rng, guarded):
    for _ in range(60):
        tokens, experts = int(rng.integers(0, 200)), int(rng.integers(1, 70))
        top_k = int(rng.integers(1, 12))
        kind = str(rng.choice(["ids", "byte_mask", "bit_mask"]))
        bound = tokens + int(rng.integers(0, 50))
        if kind == "ids":
            # Any expert, and the same one more than once.
            ids = rng.integers(-3, experts + 3, (bound, top_k))
            chosen, given = ids[:tokens].tolist(), array(ids, id_dtype(rng))
        else:
            top_k = min(top_k, experts)
            mask = random_choice(rng, bound, experts, top_k)
            chosen = [np.flatnonzero(row).tolist() for row in mask[:tokens]]
            given = array(mask if kind == "byte_mask" else bit_mask(mask))
        desc = {"num_tokens": bound, "num_experts": experts, "top_k": top_k}
        options, args = {}, {}
        desc["alignment"] = options["alignment"] = int(rng.choice(ALIGNMENTS))
        local = str(rng.choice(["all", "range", "map"]))
        if local == "range":
            begin = int(rng.integers(0, experts))
            count = int(rng.integers(1, experts - begin + 1))
            desc |= {"expert_begin": begin, "num_local_experts": count}
            options["group_of"] = [e - begin if begin <= e < begin + count else -1 for e in range(experts)]
        if local == "map":
            count = int(rng.integers(1, experts + 1))
            group_of = np.full(experts, -1)
            group_of[rng.permutation(experts)[:count]] = rng.permutation(count)
            desc["num_local_experts"] = count
            options["group_of"] = group_of.tolist()
            args["expert_map"] = array(group_of, "int32")
        if rng.random() < 0.3:
            desc["rows_per_group"] = options["rows_per_group"] = int(rng.integers(1, 40))
        full = plan_reference(chosen, experts, top_k, **options)
        assert full.rows_needed <= ctx.query("dispatch_rows_max", desc)
        if rng.random() < 0.3 and full.rows_needed > 0:
            desc["rows_max"] = options["rows_max"] = int(rng.integers(1, full.rows_needed + 1))
        reference = plan_reference(chosen, experts, top_k, **options)
        true_tokens = array([tokens], id_dtype(rng)) if bound > tokens else None
        status = report()
        out = run_plan(
            ctx, guarded, desc, {kind: given}, id_dtype(rng), rows=desc.get("rows_max"), true_tokens=true_tokens,
            report=status, **args,
        )
        check(out, reference)
        dropped = reference.num_rows < reference.rows_needed
        expected = (libmoe.FAULT_OVERFLOW, desc.get("rows_max"), reference.rows_needed)
        assert report_fields(status) == (expected if dropped else (0, 0, 0)), desc


def test_only_what_is_required(ctx, rng):
    ids = ROUTINGS["uniform"](rng, 100, 16, 4)
    reference = plan_reference(ids.tolist(), 16, 4)
    offsets, rows = empty(17, "int64"), empty((100, 4), "int32")
    desc = {"num_tokens": 100, "num_experts": 16, "top_k": 4}
    ctx.run("dispatch_plan", desc, {"ids": array(ids), "group_offsets": offsets, "row_of_slot": rows})
    np.testing.assert_array_equal(host(offsets), reference.group_offsets)
    np.testing.assert_array_equal(host(rows).ravel(), reference.row_of_slot)


@pytest.mark.parametrize("kind", ["ids", "byte_mask", "bit_mask"])
def test_pitches(ctx, rng, guarded, kind):
    tokens, experts, top_k = 77, 40, 5
    mask = random_choice(rng, tokens, experts, top_k)
    chosen = [np.flatnonzero(row).tolist() for row in mask]
    if kind == "ids":
        chosen = [(row + [-1] * top_k)[:top_k] for row in chosen]
    given = {"ids": np.array(chosen) if kind == "ids" else None, "byte_mask": mask, "bit_mask": bit_mask(mask)}[kind]
    wide = np.full((tokens, given.shape[1] + 3), 1, given.dtype)
    wide[:, :given.shape[1]] = given
    desc = {"num_tokens": tokens, "num_experts": experts, "top_k": top_k}
    out = run_plan(ctx, guarded, desc, {kind: array(wide)[:, :given.shape[1]]}, "int32")
    check(out, plan_reference(chosen, experts, top_k))


@pytest.mark.parametrize("count,used", [(0, 0), (1, 1), (39, 39), (-5, 0), (41, 40), (2**31 - 1, 40)])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_true_count(ctx, rng, guarded, count, used, dtype):
    ids = ROUTINGS["skewed"](rng, 40, 9, 3)
    status = report()
    desc = {"num_tokens": 40, "num_experts": 9, "top_k": 3, "alignment": 16}
    out = run_plan(
        ctx, guarded, desc, {"ids": array(ids)}, "int64", true_tokens=array([count], dtype), report=status
    )
    check(out, plan_reference(ids[:used].tolist(), 9, 3, alignment=16))
    fault = (0, 0, 0) if count == used else (libmoe.FAULT_COUNT, 40, count)
    assert report_fields(status) == fault


def test_strict_ids(ctx, rng, guarded):
    ids = ROUTINGS["uniform"](rng, 64, 8, 2)
    ids[5, 0] = -1
    desc = {"num_tokens": 64, "num_experts": 8, "top_k": 2, "strict_ids": 1}
    for bad in -2, 8, 2**31 - 1, -2**31, 2**40:
        for strict in 0, 1:
            ids[33, 1] = bad
            status = report()
            given = {"ids": array(ids, "int64")}
            out = run_plan(ctx, guarded, desc | {"strict_ids": strict}, given, "int32", report=status)
            check(out, plan_reference(ids.tolist(), 8, 2))
            fault = (libmoe.FAULT_EXPERT_ID, 67, bad) if strict else (0, 0, 0)
            assert report_fields(status) == fault


def test_bad_expert_map(ctx, rng, guarded):
    ids = ROUTINGS["uniform"](rng, 64, 8, 2)
    for bad in -2, 3, 2**31 - 1, -2**31:
        expert_map = np.array([0, -1, 1, bad, 2, -1, -1, -1])
        status = report()
        desc = {"num_tokens": 64, "num_experts": 8, "top_k": 2, "num_local_experts": 3}
        args = {"expert_map": array(expert_map, "int32"), "report": status}
        out = run_plan(ctx, guarded, desc, {"ids": array(ids)}, "int32", **args)
        check(out, plan_reference(ids.tolist(), 8, 2, group_of=[0, -1, 1, -1, 2, -1, -1, -1]))
        assert report_fields(status) == (libmoe.FAULT_MAP_ENTRY, 3, bad)


@pytest.mark.parametrize("kind", ["ids", "byte_mask", "bit_mask"])
@pytest.mark.parametrize(
    "tokens,experts,top_k", [(30000, 128, 8), (9000, 1024, 3), (20000, 8, 2), (3000, 3000, 2), (2500, 70000, 1)]
)
def test_many_slots(ctx, rng, guarded, kind, tokens, experts, top_k):
    if kind != "ids" and tokens * experts > 10**7:
        pytest.skip("too large a mask")
    few = experts < 3000
    ids = ROUTINGS["skewed"](rng, tokens, experts, top_k) if few else rng.integers(0, experts, (tokens, top_k))
    ids.sort()
    ids[:, 1:][ids[:, 1:] == ids[:, :-1]] = -1
    mask = np.zeros((tokens, experts), np.uint8) if kind != "ids" else None
    if kind != "ids":
        mask[np.repeat(np.arange(tokens), top_k).reshape(ids.shape)[ids >= 0], ids[ids >= 0]] = 1
    given = {"ids": ids, "byte_mask": mask, "bit_mask": None if mask is None else bit_mask(mask)}[kind]
    desc = {"num_tokens": tokens, "num_experts": experts, "top_k": top_k, "alignment": int(rng.choice(ALIGNMENTS))}
    out = run_plan(ctx, guarded, desc, {kind: array(given, "int32" if kind == "ids" else None)}, "int32")
    # A stable sort of the slots by expert; the slots of a mask are the chosen ones alone.
    slots, token = np.arange(tokens * top_k), np.repeat(np.arange(tokens), top_k)
    expert = ids.ravel()
    if kind != "ids":
        token, expert = token[expert >= 0], expert[expert >= 0]
        slots = np.arange(len(expert))
    order = slots[expert >= 0][np.argsort(expert[expert >= 0], kind="stable")]
    sizes = np.bincount(expert[order], minlength=experts)
    offsets = np.concatenate([[0], np.cumsum(-(-sizes // desc["alignment"]) * desc["alignment"])])
    np.testing.assert_array_equal(host(out["group_sizes"]), sizes)
    np.testing.assert_array_equal(host(out["group_offsets"]), offsets)
    row = np.arange(len(order)) + (offsets[:-1] - np.concatenate([[0], np.cumsum(sizes)[:-1]]))[expert[order]]
    slot_of_row = np.full(offsets[-1], -1)
    slot_of_row[row] = order
    np.testing.assert_array_equal(prefix(out["slot_of_row"], offsets[-1]), slot_of_row)
    token_of_row = np.where(slot_of_row < 0, -1, token[slot_of_row])
    np.testing.assert_array_equal(prefix(out["token_of_row"], offsets[-1]), token_of_row)
    row_of_slot = np.full(len(slots), -1)
    row_of_slot[order] = row
    np.testing.assert_array_equal(prefix(out["row_of_slot"], len(slots)), row_of_slot)
    starts = np.searchsorted(token, np.arange(tokens + 1))
    np.testing.assert_array_equal(host(out["slot_offsets"]), starts)


def test_rows_max(ctx):
    desc = {"num_tokens": 100, "num_experts": 16, "top_k": 4}
    assert ctx.query("dispatch_rows_max", desc) == 400
    assert ctx.query("dispatch_rows_max", desc | {"alignment": 128}) == (400 + 16 * 127) // 128 * 128
    assert ctx.query("dispatch_rows_max", desc | {"num_tokens": 1, "alignment": 128}) == 4 * 128
    assert ctx.query("dispatch_rows_max", desc | {"num_tokens": 0, "alignment": 128}) == 0
    assert ctx.query("dispatch_rows_max", desc | {"rows_per_group": 33, "num_local_experts": 2}) == 66
    assert ctx.query("dispatch_rows_max", desc | {"rows_per_group": 33, "alignment": 16, "expert_begin": 15}) == 48


def test_workspace_is_monotone(ctx):
    desc = {"num_experts": 64, "top_k": 8}
    sizes = [
        ctx.query("dispatch_plan_workspace_size", desc | {"num_tokens": tokens})
        for tokens in (0, 1, 100, 5000, 10**6, 10**9)
    ]
    assert sizes == sorted(sizes)


BAD = {
    "num_tokens": [-1, 2**41], "num_experts": [0, -1, 2**21], "top_k": [-1, 0, 2**31],
    "expert_begin": [-1, 8], "num_local_experts": [-1, 9], "alignment": [-1, 3, 512], "rows_per_group": [-1, 2**41],
    "rows_max": [-1, 2**41], "strict_ids": [2, -1],
}


@pytest.mark.parametrize("field,value", [(field, value) for field, values in BAD.items() for value in values])
def test_bad_descriptions(ctx, rng, guarded, field, value):
    good = {"num_tokens": 64, "num_experts": 8, "top_k": 2}
    args = {
        "ids": array(np.zeros((64, 2), np.int32)), "group_offsets": guarded(9, "int64"),
        "row_of_slot": guarded(128, "int32"),
    }
    with pytest.raises(libmoe.InvalidArgument, match=f"desc.{field} .*is {value};|desc.{field} is {value};"):
        ctx.run("dispatch_plan", good | {field: value}, args)
    assert poisoned(args["group_offsets"]).all() and poisoned(args["row_of_slot"]).all()


def test_bad_arguments(ctx, rng, guarded):
    desc = {"num_tokens": 64, "num_experts": 8, "top_k": 2}
    mask = array(np.zeros((64, 8), np.uint8))
    args = {
        "ids": array(np.zeros((64, 2), np.int32)), "group_offsets": guarded(9, "int64"),
        "row_of_slot": guarded(128, "int32"),
    }

    def refused(words, desc=desc, **changes):
        with pytest.raises(libmoe.InvalidArgument, match=words):
            ctx.run("dispatch_plan", desc, {k: v for k, v in (args | changes).items() if v is not None})
        assert poisoned(args["group_offsets"]).all() and poisoned(args["row_of_slot"]).all()

    refused("number of args.ids, args.byte_mask, args.bit_mask is 0; exactly one", ids=None)
    refused("number of args.ids, args.byte_mask, args.bit_mask is 2; exactly one", byte_mask=mask)
    refused("args.slot_offsets.data is NULL; required with a mask", ids=None, byte_mask=mask)
    refused("args.group_offsets is NULL", group_offsets=None)
    refused("args.row_of_slot.data is NULL", row_of_slot=None)
    refused("args.ids.dtype is FP32; one of MOE_DTYPE_INT32, INT64", ids=array(np.zeros((64, 2)), "fp32"))
    refused("args.byte_mask.dtype is UINT32", ids=None, byte_mask=array(np.zeros((64, 8), np.uint32)))
    refused("args.token_of_row.dtype is INT64; INT32, as args.row_of_slot", token_of_row=empty(128, "int64"))
    second = {**desc, "expert_begin": 1}
    refused("desc.expert_begin is 1; 0: expert_map replaces it", second, expert_map=array(np.zeros(8), "int32"))
    many = {**desc, "num_tokens": 2**30, "top_k": 4}
    refused("args.row_of_slot.dtype is INT32; INT64 for 4294967296 slots or rows", many)
