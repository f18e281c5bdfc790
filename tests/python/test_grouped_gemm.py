"""Grouped GEMM, forward and backward, against float64 NumPy, group by group."""

from dataclasses import dataclass

import numpy as np
import pytest

import harness
import libmoe
from harness import array, assert_close, bits, host, report_fields, rounded

OUT_IN, IN_OUT = 0, 1
TF32 = 1
FAULT_ROW_INDEX, FAULT_GROUP_OFFSET, FAULT_GROUP_SIZE = 3, 4, 5
# Odd ones, tile borders and their neighbours.
WIDTHS = [1, 3, 8, 17, 32, 64, 100, 128, 136, 200, 257, 360, 520]
CASES = 64


def fresh(rng, shape):
    return rng.standard_normal(shape)


def dtypes():
    return ["fp32", "fp16", "bf16"] + ["fp64"] * harness.on_cpu()


def pitched(x, dtype, padding):
    """x on the device, its rows apart by `padding` elements of NaN; an odd padding misaligns the first element too."""
    lead = padding % 2
    wide = np.full((*x.shape[:-1], x.shape[-1] + padding), np.nan)
    wide[..., lead : lead + x.shape[-1]] = x
    return array(wide, dtype)[..., lead : lead + x.shape[-1]]


def draw_sizes(rng):
    """Rows of each group: empty ones, single rows, tile borders, one group with nearly everything."""
    groups = int(rng.choice([1, 2, 5, 9, 40, 130]))
    kind = rng.choice(["small", "borders", "one", "none"], p=[0.5, 0.25, 0.2, 0.05])
    if kind == "small":
        return rng.integers(0, 20, groups)
    if kind == "borders":
        return rng.choice([0, 1, 63, 64, 65, 127, 128, 129, 260], groups) if groups < 20 else rng.integers(0, 5, groups)
    sizes = np.zeros(groups, np.int64)
    if kind == "one":
        sizes[rng.integers(groups)] = rng.integers(1, 700)
    return sizes


@dataclass
class Case:
    """The groups of a call, and how they are told."""

    sizes: np.ndarray
    begins: np.ndarray
    rows_max: int
    args: dict

    def spans(self):
        return [slice(b, b + s) for b, s in zip(self.begins, self.sizes)]


def draw_groups(rng, sizes=None):
    sizes = draw_sizes(rng) if sizes is None else np.asarray(sizes, np.int64)
    how = rng.choice(["offsets", "sizes", "padded"])
    first = int(rng.choice([0, 0, 3])) if how != "sizes" else 0
    room = sizes + (rng.integers(0, 6, len(sizes)) if how == "padded" else 0)
    offsets = first + np.concatenate([[0], np.cumsum(room)])
    args = {}
    if how != "sizes":
        args["group_offsets"] = array(offsets, "int64")
    if how != "offsets":
        args["group_sizes"] = array(sizes, "int64")
    return Case(sizes, offsets[:-1], int(offsets[-1] + rng.choice([0, 0, 5])), args)


def only_true_rows(x, case):
    """x with NaN in all rows that belong to no group: they must not matter."""
    kept = np.full_like(x, np.nan)
    for span in case.spans():
        kept[span] = x[span]
    return kept


def draw_gather(rng, case, source_rows):
    """(what row_index gets, source row of each row or -1): duplicates and zero rows among them."""
    index = rng.integers(0, max(source_rows, 1), case.rows_max)
    index[rng.random(case.rows_max) < 0.2] = -1 if source_rows else -7
    if not source_rows:
        index[:] = -1
    return array(index, rng.choice(["int32", "int64"])), index


def gathered(a, index):
    rows = np.zeros((len(index), a.shape[1]))
    rows[index >= 0] = a[index[index >= 0]]
    return rows


def draw_output(rng, guarded, shape, dtype, mode, pitch=None):
    """A guarded output, and its old values where the mode adds."""
    out = guarded(shape, dtype, pitch)
    old = None
    if mode != "overwrite":
        old = rounded(fresh(rng, shape), dtype)
        out[...] = array(old, dtype)
    return out, old


def draw_mode(rng):
    """(the argument, whether it adds)"""
    kind = rng.choice(["overwrite", "add", "device 0", "device 1"])
    if kind.startswith("device"):
        return array([int(kind[-1])], "int32"), kind[-1] == "1"
    return kind, kind == "add"


def draw_scalars(rng):
    desc = {"alpha": float(rng.choice([0, 1, -0.5, 1.75])), "beta": float(rng.choice([0, 1, 0.5]))}
    return desc, desc["alpha"] or 1.0, desc["beta"] or 1.0


def draw_padding(rng):
    return int(rng.choice([0, 0, 8, 24, 3]))


def draw_dtypes(rng):
    """(dtype, math, tolerance of an fp32 output)"""
    dtype = rng.choice(dtypes())
    math = TF32 if dtype == "fp32" and rng.random() < 0.5 else 0
    return dtype, math, "tf32" if math else "fp32"


def tolerance(dtype, out_dtype, wide):
    return wide if out_dtype == "fp32" else out_dtype if dtype != "fp32" else wide


def by_pointers(rng, groups):
    """Which groups have a matrix of their own; None: stacked."""
    if rng.random() < 0.5:
        return None
    present = rng.random(groups) < 0.8
    present[rng.integers(groups)] = True
    return present


def draw_weights(rng, groups, rows, columns, dtype):
    """(argument, float64 values, which groups are present)"""
    present = by_pointers(rng, groups)
    values = rounded(fresh(rng, (groups, rows, columns)), dtype)
    padding = draw_padding(rng)
    if present is None:
        return pitched(values, dtype, padding), values, np.ones(groups, bool)
    # One row has no pitch that would keep pointers off multiples of 16 bytes away from tensor maps.
    padding -= padding % 2 if rows == 1 else 0
    return [pitched(v, dtype, padding) if p else None for v, p in zip(values, present)], values, present


def check_rows(out, old, reference, written, what, tol):
    """Rows that are written are close to the reference; the others hold what they held."""
    got = host(out)
    assert_close(got[written], reference[written], tol, what)
    rest = got[~written]
    assert np.isnan(rest).all() if old is None else np.array_equal(rest, old[~written]), f"{what}: a foreign row was written"


@pytest.mark.parametrize("case_number", range(CASES))
def test_forward(ctx, rng, guarded, case_number):
    case = draw_groups(rng)
    dtype, math, wide = draw_dtypes(rng)
    layout = int(rng.choice([OUT_IN, IN_OUT]))
    n, k = (int(v) for v in rng.choice(WIDTHS, 2))
    groups, rows = len(case.sizes), case.rows_max
    scalars, alpha, beta = draw_scalars(rng)
    args = dict(case.args)

    if rng.random() < 0.5:
        source_rows = int(rng.choice([0, 1, 50]))
        source = rounded(fresh(rng, (source_rows, k)), dtype)
        args["row_index"], index = draw_gather(rng, case, source_rows)
        args["a_rows"], args["a"] = source_rows, pitched(source, dtype, draw_padding(rng))
        a = gathered(source, index)
    else:
        a = rounded(fresh(rng, (rows, k)), dtype)
    shape = (n, k) if layout == OUT_IN else (k, n)
    args["b"], b, present = draw_weights(rng, groups, *shape, dtype)
    if "a" not in args:
        seen = only_true_rows(a, case)
        for span, here in zip(case.spans(), present):
            seen[span][:] = seen[span] if here else np.nan
        args["a"] = pitched(seen, dtype, draw_padding(rng))

    bias = np.zeros((groups, n))
    if rng.random() < 0.5:
        bias_dtype = rng.choice([dtype, "fp32"])
        bias = rounded(fresh(rng, (groups, n)), bias_dtype)
        args["bias"] = pitched(bias, bias_dtype, draw_padding(rng))
    args["c_mode"], adds = draw_mode(rng)
    out_dtype = rng.choice([dtype, "fp32"])
    args["c"], old = draw_output(rng, guarded, (rows, n), out_dtype, "add" if adds else "overwrite", n + draw_padding(rng))
    args["report"] = report = harness.report()

    desc = {"dtype": dtype, "rows_max": rows, "n": n, "k": k, "num_groups": groups, "b_layout": layout, "math": math, **scalars}
    ctx.run("grouped_gemm_fwd", desc, args)

    reference, written = np.zeros((rows, n)), np.zeros(rows, bool)
    for g, span in enumerate(case.spans()):
        if present[g]:
            op = b[g].T if layout == OUT_IN else b[g]
            reference[span] = alpha * a[span] @ op + bias[g] + (beta * old[span] if adds else 0)
            written[span] = True
    check_rows(args["c"], old, reference, written, f"{desc}", tolerance(dtype, out_dtype, wide))
    assert report_fields(report)[0] == 0


@pytest.mark.parametrize("case_number", range(CASES))
def test_backward(ctx, rng, guarded, case_number):
    case = draw_groups(rng)
    dtype, math, wide = draw_dtypes(rng)
    layout = int(rng.choice([OUT_IN, IN_OUT]))
    n, k = (int(v) for v in rng.choice(WIDTHS, 2))
    groups, rows = len(case.sizes), case.rows_max
    scalars, alpha, beta = draw_scalars(rng)
    args = dict(case.args)
    dc = rounded(fresh(rng, (rows, n)), dtype)
    args["dc"] = pitched(only_true_rows(dc, case), dtype, draw_padding(rng))
    a = rounded(fresh(rng, (rows, k)), dtype)
    args["a"] = pitched(only_true_rows(a, case), dtype, draw_padding(rng))
    if rng.random() < 0.4:
        source = rounded(fresh(rng, (33, k)), dtype)
        args["row_index"], index = draw_gather(rng, case, 33)
        args["a_rows"], args["a"] = 33, pitched(source, dtype, draw_padding(rng))
        a = gathered(source, index)
    shape = (n, k) if layout == OUT_IN else (k, n)
    args["b"], b, present = draw_weights(rng, groups, *shape, dtype)
    wanted = [name for name in ("da", "db", "dbias") if rng.random() < 0.75]
    olds, tols, adds, trained = {}, {}, {}, np.ones(groups, bool)

    def output(name, mode, shape, pitch, matrices=None):
        out_dtype = rng.choice([dtype, "fp32"])
        tols[name] = tolerance(dtype, out_dtype, wide)
        args[mode], adds[name] = draw_mode(rng)
        how = "add" if adds[name] else "overwrite"
        if matrices is None:
            args[name], olds[name] = draw_output(rng, guarded, shape, out_dtype, how, pitch)
        else:
            drawn = [draw_output(rng, guarded, shape[1:], out_dtype, how, pitch) if m else (None, None) for m in matrices]
            args[name], olds[name] = [d[0] for d in drawn], [d[1] for d in drawn]

    if "da" in wanted:
        output("da", "da_mode", (rows, k), k + draw_padding(rng))
    if "db" in wanted:
        matrices = by_pointers(rng, groups)
        trained = np.ones(groups, bool) if matrices is None else matrices
        output("db", "db_mode", (groups, *shape), shape[1] + draw_padding(rng), matrices)
    if "dbias" in wanted:
        output("dbias", "dbias_mode", (groups, n), n + draw_padding(rng))

    desc = {"dtype": dtype, "rows_max": rows, "n": n, "k": k, "num_groups": groups, "b_layout": layout, "math": math, **scalars}
    args["report"] = report = harness.report()
    ctx.run("grouped_gemm_bwd", desc, args)

    def old(name, part):
        return beta * olds[name][part] if adds[name] else 0

    if "da" in wanted:
        reference, written = np.zeros((rows, k)), np.zeros(rows, bool)
        for g, span in enumerate(case.spans()):
            if present[g]:
                op = b[g] if layout == OUT_IN else b[g].T
                reference[span] = alpha * dc[span] @ op + old("da", span)
                written[span] = True
        check_rows(args["da"], olds["da"], reference, written, f"da {desc}", tols["da"])
    for g, span in enumerate(case.spans()):
        if "db" in wanted and trained[g]:
            product = alpha * dc[span].T @ a[span]
            reference = (product if layout == OUT_IN else product.T) + old("db", g)
            # Sums that cancel leave what their terms were rounded to.
            assert_close(args["db"][g], reference, tols["db"], f"db of group {g} {desc}", factor=1.5)
        if "dbias" in wanted:
            assert_close(args["dbias"][g], dc[span].sum(axis=0) + old("dbias", g), tols["dbias"], f"dbias of group {g} {desc}", factor=4)
    assert report_fields(report)[0] == 0


@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.parametrize("beta", [1.0, 0.5, -2.0])
def test_gradients_of_small_groups_add_to_scaled_old_values(ctx, rng, beta, by_index):
    """Whole tiles of fp32, part of whose old values a GPU copies ahead while the rest is added in its cache."""
    sizes, n, k, source_rows = [17, 0, 40, 3], 576, 384, 50
    rows, alpha = sum(sizes), 1.5
    dc, a = rounded(fresh(rng, (rows, n)), "bf16"), rounded(fresh(rng, (rows, k)), "bf16")
    old = rounded(fresh(rng, (len(sizes), n, k)), "fp32")
    args = {"dc": array(dc, "bf16"), "a": array(a, "bf16"), "group_sizes": array(sizes, "int64")}
    if by_index:
        source, index = rounded(fresh(rng, (source_rows, k)), "bf16"), rng.integers(0, source_rows, rows)
        args.update(a=array(source, "bf16"), row_index=array(index, "int32"), a_rows=source_rows)
        a = source[index]
    args.update(db=array(old, "fp32"), db_mode="add")
    desc = {"dtype": "bf16", "rows_max": rows, "n": n, "k": k, "num_groups": len(sizes), "alpha": alpha, "beta": beta}
    ctx.run("grouped_gemm_bwd", desc, args)
    ends = np.cumsum(sizes)
    for g, (begin, end) in enumerate(zip(ends - sizes, ends)):
        assert_close(args["db"][g], alpha * dc[begin:end].T @ a[begin:end] + beta * old[g], "fp32", f"db of group {g}", factor=2)


def plain(rng, sizes, n, k, dtype="fp32"):
    """A small forward call, its float64 operands beside it."""
    sizes = np.asarray(sizes)
    rows = int(sizes.sum())
    a, b = rounded(fresh(rng, (rows, k)), dtype), rounded(fresh(rng, (len(sizes), n, k)), dtype)
    desc = {"dtype": dtype, "rows_max": rows, "n": n, "k": k, "num_groups": len(sizes)}
    args = {"a": array(a, dtype), "b": array(b, dtype), "group_sizes": array(sizes, "int64")}
    return desc, args, a, b


def clamped(offsets, rows):
    """Ascending, within the rows; and the faults that are found on the way."""
    faults, low, result = set(), 0, []
    for place, value in enumerate(offsets):
        if not low <= value <= rows:
            faults.add((FAULT_GROUP_OFFSET, place, int(value)))
        low = min(max(value, low), rows)
        result.append(low)
    return result, faults


@pytest.mark.parametrize("bad", ["down", "beyond", "negative", "bits"])
def test_offsets_out_of_range_are_clamped_and_reported(ctx, rng, guarded, bad):
    desc, args, a, b = plain(rng, [10, 0, 30, 20, 4], 24, 40)
    rows = desc["rows_max"]
    offsets = {
        "down": [0, 40, 10, 45, 30, 64], "beyond": [0, 10, 10, 40, 2**40, 2**62], "negative": [-9, -5, 3, -(2**63), 5, 64],
        "bits": rng.integers(-(2**63), 2**63, 6, dtype=np.int64),
    }[bad]
    del args["group_sizes"]
    args.update(group_offsets=array(offsets, "int64"), c=guarded((rows, 24), "fp32"), report=harness.report())
    ctx.run("grouped_gemm_fwd", desc, args)
    spans, faults = clamped(offsets, rows)
    reference, written = np.zeros((rows, 24)), np.zeros(rows, bool)
    for g, (begin, end) in enumerate(zip(spans, spans[1:])):
        reference[begin:end] = a[begin:end] @ b[g].T
        written[begin:end] = True
    check_rows(args["c"], None, reference, written, bad, "fp32")
    assert report_fields(args["report"]) in faults

    dc = fresh(rng, (rows, 24))
    back = {"dc": array(dc, "fp32"), "a": args["a"], "group_offsets": args["group_offsets"], "report": harness.report()}
    back["db"] = guarded((5, 24, 40), "fp32")
    ctx.run("grouped_gemm_bwd", desc, back)
    for g, (begin, end) in enumerate(zip(spans, spans[1:])):
        assert_close(back["db"][g], rounded(dc, "fp32")[begin:end].T @ a[begin:end], "fp32", f"db of group {g}", factor=2)
    assert report_fields(back["report"]) in faults


@pytest.mark.parametrize("sizes, faults", [
    ([10, -4, 2**40, 5], {(FAULT_GROUP_SIZE, 1, -4), (FAULT_GROUP_SIZE, 2, 2**40), (FAULT_GROUP_SIZE, 3, 5)}),
    ([70, 0, 0, 0], {(FAULT_GROUP_SIZE, 0, 70)}),
])
def test_sizes_out_of_range_are_clamped_and_reported(ctx, rng, guarded, sizes, faults):
    desc, args, a, b = plain(rng, [16, 16, 16, 16], 24, 40)
    args.update(group_sizes=array(sizes, "int64"), c=guarded((64, 24), "fp32"), report=harness.report())
    ctx.run("grouped_gemm_fwd", desc, args)
    begin, reference = 0, np.zeros((64, 24))
    for g, size in enumerate(sizes):
        end = begin + min(max(size, 0), 64 - begin)
        reference[begin:end] = a[begin:end] @ b[g].T
        begin = end
    check_rows(args["c"], None, reference, np.arange(64) < begin, "sizes", "fp32")
    assert report_fields(args["report"]) in faults


def test_true_rows_longer_than_their_group_are_clamped(ctx, rng, guarded):
    desc, args, a, b = plain(rng, [16, 16], 8, 8)
    args.update(group_offsets=array([0, 16, 32], "int64"), group_sizes=array([20, 5], "int64"))
    args.update(c=guarded((32, 8), "fp32"), report=harness.report())
    ctx.run("grouped_gemm_fwd", desc, args)
    reference = np.concatenate([a[:16] @ b[0].T, a[16:] @ b[1].T])
    check_rows(args["c"], None, reference, np.arange(32) < 21, "padded", "fp32")
    assert report_fields(args["report"]) == (FAULT_GROUP_SIZE, 0, 20)


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_row_index_out_of_range_is_a_row_of_zeros_and_reported(ctx, rng, guarded, dtype):
    desc, args, a, b = plain(rng, [5, 3], 16, 32)
    index = np.array([7, 0, -1, 8, 2, -(2**31), 2**31 - 1, 1])
    args.update(row_index=array(index, dtype), a_rows=8, c=guarded((8, 16), "fp32"), report=harness.report())
    ctx.run("grouped_gemm_fwd", desc, args)
    rows = gathered(a, np.where(index < 8, index, -1))
    assert_close(args["c"], np.concatenate([rows[:5] @ b[0].T, rows[5:] @ b[1].T]), "fp32")
    assert report_fields(args["report"]) in {(FAULT_ROW_INDEX, 3, 8), (FAULT_ROW_INDEX, 6, 2**31 - 1)}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_gradients_of_empty_groups_are_zero_or_kept(ctx, rng, guarded, dtype):
    desc = {"dtype": dtype, "rows_max": 0, "n": 40, "k": 24, "num_groups": 3}
    nothing = {"dc": array(np.zeros((0, 40)), dtype), "a": array(np.zeros((0, 24)), dtype), "group_offsets": array([0, 0, 0, 0], "int64")}
    db, dbias = guarded((3, 40, 24), "fp32"), guarded((3, 40), "fp32")
    ctx.run("grouped_gemm_bwd", desc, {**nothing, "db": db, "dbias": dbias})
    assert not host(db).any() and not host(dbias).any()
    kept = fresh(rng, (3, 40, 24))
    db[...] = array(kept, "fp32")
    ctx.run("grouped_gemm_bwd", desc, {**nothing, "db": db, "db_mode": "add"})
    assert np.array_equal(host(db), rounded(kept, "fp32"))


def test_no_rows_write_nothing(ctx, guarded):
    desc = {"dtype": "fp32", "rows_max": 0, "n": 4, "k": 4, "num_groups": 2}
    args = {"a": array(np.zeros((0, 4)), "fp32"), "b": array(np.zeros((2, 4, 4)), "fp32"), "group_offsets": array([0, 0, 0], "int64")}
    args["c"] = guarded((0, 4), "fp32")
    ctx.run("grouped_gemm_fwd", desc, args)


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_same_bits_each_time(ctx, rng, dtype):
    desc, args, _, _ = plain(rng, rng.integers(0, 200, 12), 200, 300, dtype)
    rows = desc["rows_max"]
    back = {"dc": array(fresh(rng, (rows, 200)), dtype), "a": args["a"], "group_sizes": args["group_sizes"]}

    def run():
        args["c"] = harness.empty((rows, 200), dtype)
        back["db"], back["dbias"] = harness.empty((12, 200, 300), "fp32"), harness.empty((12, 200), "fp32")
        ctx.run("grouped_gemm_fwd", desc, args)
        ctx.run("grouped_gemm_bwd", desc, back)
        return [bits(x) for x in (args["c"], back["db"], back["dbias"])]

    first = run()
    for _ in range(3):
        for x, y in zip(first, run()):
            assert np.array_equal(x, y)


def test_sums_are_kept_in_fp32(ctx, guarded):
    """1 + 2047 terms of 2^-11: lost if partial sums were rounded to 16 bits."""
    for dtype in ("fp16", "bf16"):
        a = np.full((1, 2048), 2.0**-11)
        a[0, 0] = 1
        args = {"a": array(a, dtype), "b": array(np.ones((1, 8, 2048)), dtype), "group_sizes": array([1], "int64")}
        args["c"] = guarded((1, 8), "fp32")
        ctx.run("grouped_gemm_fwd", {"dtype": dtype, "rows_max": 1, "n": 8, "k": 2048, "num_groups": 1}, args)
        assert np.array_equal(host(args["c"]), np.full((1, 8), 1 + 2047 * 2.0**-11))


MISUSE = [
    ({"n": 0}, {}, "desc.n is 0; at least 1"),
    ({"k": -1}, {}, "desc.k is -1"),
    ({"num_groups": 0}, {}, "desc.num_groups"),
    ({"rows_max": -1}, {}, "desc.rows_max"),
    ({"b_layout": 2}, {}, "desc.b_layout"),
    ({"math": 9}, {}, "desc.math"),
    ({"alpha": float("nan")}, {}, "desc.alpha"),
    ({"beta": float("inf")}, {}, "desc.beta"),
    ({"dtype": "int32"}, {}, "desc.dtype"),
    ({}, {"group_sizes": None}, "group_offsets"),
    ({}, {"group_offsets": 4}, "group_offsets"),
    ({}, {"reserved": 1}, "reserved"),
    ({}, {"a": None}, "a.struct_size|a.data"),
    ({}, {"b": None}, "b.data"),
    ({}, {"c_mode": 7}, "c_mode"),
    ({"k": 33}, {"a": {"row_pitch": 8}}, "a"),
]


@pytest.mark.parametrize("desc_change, args_change, message", MISUSE)
def test_misuse_names_the_argument_and_writes_nothing(ctx, rng, guarded, desc_change, args_change, message):
    desc, args, _, _ = plain(rng, [3, 2], 8, 16)
    args["c"] = guarded((5, 8), "fp32")
    with pytest.raises(libmoe.InvalidArgument, match=message):
        ctx.run("grouped_gemm_fwd", {**desc, **desc_change}, {**args, **args_change})
    assert harness.poisoned(args["c"]).all()
