"""moe_sort_chunks in both directions."""

import numpy as np
import pytest

import libmoe
from harness import array, bits, host, poisoned, report, report_fields


def sort_reference(x, sizes, order, inverse):
    """x with its chunks in order; inverse: from that order back."""
    begins = np.concatenate([[0], np.cumsum(sizes)])
    source = np.concatenate([np.arange(begins[c], begins[c + 1]) for c in order] or [np.zeros(0, int)]).astype(int)
    y = np.empty_like(x)
    if inverse:
        y[source] = x
    else:
        y = x[source]
    return y


def run_sort(ctx, guarded, rng, x, dtype, sizes, order, inverse, rows, **args):
    hidden = x.shape[1]
    y = guarded((rows, hidden), dtype, hidden + int(rng.choice([0, 16, 3])))
    desc = {
        "dtype": getattr(libmoe, f"DTYPE_{dtype.upper()}"), "rows_max": rows, "hidden_size": hidden,
        "num_chunks": len(sizes), "direction": libmoe.SORT_INVERSE if inverse else libmoe.SORT_FORWARD,
    }
    ctx.run("sort_chunks", desc, {
        "x": x, "y": y, "chunk_sizes": array(sizes, "int64"), "order": array(order, "int32"), **args
    })
    return y


@pytest.mark.parametrize("dtype", ["bf16", "fp32", "int64", "uint8"])
@pytest.mark.parametrize("inverse", [False, True])
def test_sort(ctx, rng, guarded, dtype, inverse):
    for _ in range(20):
        chunks = int(rng.choice([0, 1, 2, 16, 300]))
        sizes = rng.integers(0, int(rng.choice([1, 2, 40])) + 1, chunks)
        order = rng.permutation(chunks)
        used = int(sizes.sum())
        rows, hidden = used + int(rng.choice([0, 5])), int(rng.choice([1, 8, 40, 513]))
        x = rng.integers(0, 100, (rows, hidden))
        weights = rng.integers(0, 100, rows)
        sorted_weights, status = guarded(rows, "fp32"), report()
        y = run_sort(
            ctx, guarded, rng, array(x, dtype), dtype, sizes, order, inverse, rows, report=status,
            row_weights=array(weights, "fp32"), sorted_row_weights=sorted_weights,
        )
        for out, given in (y, x), (sorted_weights, weights):
            np.testing.assert_array_equal(host(out)[:used], sort_reference(given[:used], sizes, order, inverse))
            assert poisoned(out)[used:].all()
        assert report_fields(status)[0] == 0
        guarded.check()


def test_rank_major_to_expert_major_and_back(ctx, rng, guarded):
    ranks, experts = 4, 6
    sizes = rng.integers(0, 9, (ranks, experts))
    order = np.arange(ranks * experts).reshape(ranks, experts).T.ravel()
    rows = int(sizes.sum())
    expert = np.repeat(np.tile(np.arange(experts), ranks), sizes.ravel())[:, None]
    there = run_sort(ctx, guarded, rng, array(expert, "int32"), "int32", sizes.ravel(), order, False, rows)
    np.testing.assert_array_equal(host(there), np.sort(expert, axis=0))
    back = run_sort(ctx, guarded, rng, there, "int32", sizes.ravel(), order, True, rows)
    assert bits(back).tobytes() == bits(array(expert, "int32")).tobytes()


@pytest.mark.parametrize("inverse", [False, True])
def test_chunks_that_lead_astray(ctx, rng, guarded, inverse):
    x = array(rng.integers(0, 100, (50, 3)), "int32")
    cases = [
        ([10, -3, 20], [0, 1, 2], libmoe.FAULT_GROUP_SIZE, 1, -3),
        ([10, 20, 2**62], [2, 0, 1], libmoe.FAULT_GROUP_SIZE, 2, 2**62),
        ([10, 20, -2**63], [2, 0, 1], libmoe.FAULT_GROUP_SIZE, 2, -2**63),
        ([30, 20, 1], [2, 0, 1], libmoe.FAULT_GROUP_SIZE, 2, 1),
        ([10, 20, 5], [2, 0, 3], libmoe.FAULT_MAP_ENTRY, 2, 3),
        ([10, 20, 5], [-1, 0, 1], libmoe.FAULT_MAP_ENTRY, 0, -1),
        ([10, 20, 5], [-2**31, 0, 2**31 - 1], libmoe.FAULT_MAP_ENTRY, 0, -2**31),
    ]
    for sizes, order, what, place, value in cases:
        status = report()
        run_sort(ctx, guarded, rng, x, "int32", sizes, order, inverse, 50, report=status)
        assert report_fields(status)[0] == what
        assert report_fields(status)[1:] == (place, value) or order[2] == 2**31 - 1
        guarded.check()
    # A chunk twice: legal to ask for, stays within the rows.
    run_sort(ctx, guarded, rng, x, "int32", [40, 10], [0, 0], inverse, 50)


def test_bad_arguments(ctx, rng, guarded):
    x, y = array(rng.integers(0, 9, (10, 4)), "int32"), guarded((10, 4), "int32")
    good = {"dtype": libmoe.DTYPE_INT32, "rows_max": 10, "hidden_size": 4, "num_chunks": 2}
    args = {"x": x, "y": y, "chunk_sizes": array([4, 6], "int64"), "order": array([1, 0], "int32")}
    bad = {
        "dtype": [0, 12], "rows_max": [-1, 2**41], "hidden_size": [0, 2**31], "num_chunks": [-1, 2**21],
        "direction": [-1, 2], "reserved": [1],
    }
    for field, values in bad.items():
        for value in values:
            with pytest.raises(libmoe.InvalidArgument, match=f"desc.{field} is {value};"):
                ctx.run("sort_chunks", good | {field: value}, args)
    for name in args:
        with pytest.raises(libmoe.InvalidArgument, match=f"args.{name}(.data)? is NULL"):
            ctx.run("sort_chunks", good, {k: v for k, v in args.items() if k != name})
    with pytest.raises(libmoe.InvalidArgument, match="args.y.dtype is INT64"):
        ctx.run("sort_chunks", good, args | {"y": array(np.zeros((10, 4)), "int64")})
    with pytest.raises(libmoe.InvalidArgument, match="args.row_weights"):
        ctx.run("sort_chunks", good, args | {"sorted_row_weights": array(np.zeros(10), "fp32")})
    assert poisoned(y).all()
