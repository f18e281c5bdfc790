"""Sinkhorn against the textbook's loop on exp(logits), where that is finite, and against plain log-sum-exps everywhere else."""

import math

import numpy as np
import pytest

import libmoe
from harness import array, assert_close, bits, empty, host, on_cpu, report, report_fields, rounded, zeros

EPSILON = 1e-8
LARGEST = float(np.finfo(np.float32).max)
DTYPES = ("fp64", "fp32", "fp16", "bf16")
PRESETS = {"DEFAULT": (0, 1, 100), "MEGATRON": (0, 0, 1000), "NEOX": (1, 0, 3)}
# (T, E): one token, one expert, a few, more experts than tokens, odd numbers, several blocks.
SIZES = [(1, 1), (1, 7), (9, 1), (5, 3), (64, 8), (33, 72), (257, 33), (1000, 8), (700, 64), (300, 130), (40, 1024), (3000, 300)]


def dtypes():
    return DTYPES if on_cpu() else DTYPES[1:]


def textbook(logits, column_sums=False, relative=False, tolerance=1e-4, iterations=1000):
    """Megatron-Core's and GPT-NeoX's loop: P, d0, d1, iterations, error."""
    cost = np.exp(logits)
    tokens, experts = cost.shape
    d1 = 1 / (experts * cost.sum(0)) if column_sums else np.ones(experts)
    for count in range(1, iterations + 1):
        d0 = 1 / tokens / ((cost * d1).sum(1) + EPSILON)
        old, d1 = d1, 1 / experts / ((cost * d0[:, None]).sum(0) + EPSILON)
        error = np.abs(old / d1 - 1).max() if relative else np.abs(old - d1).mean()
        if error <= tolerance:
            break
    return d0[:, None] * cost * d1, d0, d1, count, error


def log_sum(x, axis):
    """log of the sum of e^x; -inf where nothing is added."""
    top = np.maximum(x.max(axis, keepdims=True), -1e300)
    with np.errstate(divide="ignore"):
        return np.log(np.exp(x - top).sum(axis)) + top.squeeze(axis)


def logarithmic(logits, column_sums=False, relative=False, tolerance=1e-4, iterations=1000):
    """The same in logarithms: log P, log d0, log d1, iterations, error."""
    logits = np.where(np.isnan(logits), -np.inf, np.minimum(logits, LARGEST))
    tokens, experts = logits.shape
    log_epsilon, g = math.log(EPSILON), np.zeros(experts)
    if column_sums:
        sums = log_sum(logits, 0)
        g = -np.where(np.isneginf(sums), log_epsilon, sums) - math.log(experts)
    for count in range(1, iterations + 1):
        d0 = -np.logaddexp(log_sum(logits + g, 1), log_epsilon) - math.log(tokens)
        old, g = g, -np.logaddexp(log_sum(logits + d0[:, None], 0), log_epsilon) - math.log(experts)
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.abs(np.expm1(old - g)).max() if relative else np.abs(np.exp(old) - np.exp(g)).mean()
        if error <= tolerance:
            break
    return logits + d0[:, None] + g, d0, g, count, error


def options(preset="DEFAULT", start=None, stop=None, max_iterations=0, tolerance=0.0):
    """The library's fields, and the references'."""
    column_sums, relative, bound = PRESETS[preset]
    fields = {"preset": getattr(libmoe, "SINKHORN_" + preset), "max_iterations": max_iterations, "tolerance": tolerance}
    if start is not None:
        column_sums, fields["start"] = start, (libmoe.SINKHORN_START_ONES, libmoe.SINKHORN_START_COLUMN_SUMS)[start]
    if stop is not None:
        relative, fields["stop"] = stop, (libmoe.SINKHORN_STOP_ABSOLUTE, libmoe.SINKHORN_STOP_RELATIVE)[stop]
    loop = {"column_sums": column_sums, "relative": relative, "iterations": max_iterations or bound}
    return fields, loop | {"tolerance": tolerance or 1e-4}


def sinkhorn(ctx, logits, dtype="fp32", probs_dtype="fp32", num_tokens=None, report=None, **fields):
    """All outputs of one call on logits that `dtype` holds."""
    tokens, experts = logits.shape
    out = {"probs": empty((tokens, experts), probs_dtype), "log_d0": empty(tokens, "fp32"), "log_d1": empty(experts, "fp32"),
           "iterations": empty(1, "int32"), "error": empty(1, "fp32")}
    desc = {"logits_dtype": dtype, "num_tokens": tokens, "num_experts": experts, **fields}
    ctx.run("sinkhorn", desc, {"logits": array(logits, dtype), "num_tokens": num_tokens, "report": report, **out})
    return out


def check_count(out, count):
    """All iterations, or fewer to where nothing changes any more in fp32."""
    ours = int(host(out["iterations"])[0])
    assert ours == count or (ours < count and host(out["error"]) == 0), f"{ours} iterations, not {count}"


def check_logs(out, reference, slack=1e-5, what=""):
    """log d0 and log d1 to `slack`, plus fp32's rounding of large ones."""
    for name, expected in zip(("log_d0", "log_d1"), reference[1:3]):
        allowed = slack + 3e-7 * np.abs(expected)
        off = np.abs(host(out[name]) - expected)
        assert (off <= allowed).all(), f"{what} {name}: off by {off.max():.3g} at {off.argmax()}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("tokens, experts", SIZES)
def test_presets(ctx, rng, tokens, experts, preset, dtype):
    if dtype not in dtypes():
        pytest.skip("FP64 is the CPU's")
    logits = rounded(rng.choice([0.3, 1.0, 4.0]) * rng.standard_normal((tokens, experts)), dtype)
    # A fixed number of iterations, so that fp32 and float64 stop together.
    fields, loop = options(preset, max_iterations=int(rng.integers(1, 9)), tolerance=1e-30)
    out = sinkhorn(ctx, logits, dtype, **fields)
    probs, d0, d1, count, _ = textbook(logits, **loop)
    check_count(out, count)
    assert_close(out["probs"], probs, "fp32", f"P, {count} iterations", factor=3)
    check_logs(out, (None, np.log(d0), np.log(d1)))


def test_more_than_the_chip_holds(ctx, rng):
    logits = rounded(3 * rng.standard_normal((12000, 1024), np.float32), "bf16")
    fields, loop = options(str(rng.choice(list(PRESETS))), max_iterations=2, tolerance=1e-30)
    out = sinkhorn(ctx, logits, "bf16", **fields)
    probs, d0, d1, *_ = textbook(logits, **loop)
    assert_close(out["probs"], probs, "fp32", factor=3)
    check_logs(out, (None, np.log(d0), np.log(d1)))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", (1, 5))
def test_stops_where_the_test_holds(ctx, rng, preset, scale):
    logits = rounded(scale * rng.standard_normal((512, 16)), "fp32")
    fields, loop = options(preset, max_iterations=0 if preset == "NEOX" else 200, tolerance=1e-3)
    out = sinkhorn(ctx, logits, **fields)
    _, _, d1, count, error = textbook(logits, **loop)
    ours, stopped = int(host(out["iterations"])[0]), float(host(out["error"])[0])
    # Another rounding may meet the tolerance an iteration earlier or later.
    assert abs(ours - count) <= 1
    assert stopped <= loop["tolerance"] or ours == loop["iterations"]
    if ours == count:
        assert math.isclose(stopped, error, rel_tol=0.02, abs_tol=1e-6)
    check_logs(out, (None, host(out["log_d0"]), np.log(d1)), slack=3e-3)


@pytest.mark.parametrize("start", (False, True))
@pytest.mark.parametrize("stop", (False, True))
def test_start_and_stop_replace_the_presets(ctx, rng, start, stop):
    logits = rounded(rng.standard_normal((100, 12)) + rng.standard_normal(12), "fp32")
    preset = str(rng.choice(list(PRESETS)))
    fields, loop = options(preset, start, stop, 5, 1e-30)
    out = sinkhorn(ctx, logits, **fields)
    *reference, count, error = textbook(logits, **loop)
    check_count(out, count)
    assert math.isclose(float(host(out["error"])[0]), error, rel_tol=1e-3, abs_tol=1e-5)
    assert_close(out["probs"], reference[0], "fp32", factor=3)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("offset", (0.0, 1e4, -1e4, 300.0, -40.0))
@pytest.mark.parametrize("spread", (1.0, 30.0, 1e4))
def test_logits_of_any_size(ctx, rng, preset, offset, spread):
    logits = rounded(offset + spread * rng.uniform(-1, 1, (60, 10)), "fp32")
    fields, loop = options(preset, max_iterations=4, tolerance=1e-30)
    out = sinkhorn(ctx, logits, **fields)
    log_p, *reference = logarithmic(logits, **loop)
    check_logs(out, (None, *reference), slack=1e-4)
    assert np.isfinite(host(out["probs"])).all()
    if max(abs(offset), spread) <= 300:
        assert_close(out["probs"], np.exp(log_p), "fp32", factor=30)


def test_experts_that_nobody_can_reach(ctx, rng):
    """Balance is impossible: log d1 falls without end, past what fp32 holds as d1; it stays exact."""
    logits = np.full((50, 6), -1e4)
    logits[:, 2] = rng.standard_normal(50)
    for iterations in (3, 40, 200):
        fields, loop = options(max_iterations=iterations, tolerance=1e-30)
        out = sinkhorn(ctx, rounded(logits, "fp32"), **fields)
        log_p, *reference = logarithmic(rounded(logits, "fp32"), **loop)
        check_logs(out, (None, *reference), slack=2e-4, what=f"{iterations} iterations,")
        assert_close(out["probs"], np.exp(log_p), "fp32", factor=100)


def test_infinities_and_nan(ctx, rng):
    logits = rng.standard_normal((40, 9))
    logits[rng.random(logits.shape) < 0.2] = -np.inf
    logits[3] = -np.inf
    logits[:, 4] = -np.inf
    logits[5, [1, 7]] = np.inf
    logits[6, 2] = np.nan
    logits[9, :] = np.nan
    fault = report()
    fields, loop = options(max_iterations=3, tolerance=1e-30)
    out = sinkhorn(ctx, rounded(logits, "fp32"), report=fault, **fields)
    what, place, _ = report_fields(fault)
    assert what == libmoe.FAULT_NAN_LOGIT and np.isnan(logits.flat[place])
    # 1e4 is as infinite as +inf but for its row's d0.
    _, *reference = logarithmic(np.minimum(rounded(logits, "fp32"), 1e4), **loop)
    assert host(out["log_d0"])[5] < -1e38
    reference[0][5] = host(out["log_d0"])[5]
    check_logs(out, (None, *reference))
    probs = host(out["probs"])
    assert np.isfinite(probs).all()
    assert (probs[[3, 9]] == 0).all() and (probs[:, 4] == 0).all() and probs[6, 2] == 0
    # Two +inf share their row.
    assert probs[5, [0, 2, 3]].sum() == 0 and (probs[5, [1, 7]] > 0).all()
    assert math.isclose(probs[5, 1] / probs[5, 7], np.exp(reference[1][1] - reference[1][7]), rel_tol=1e-4)
    assert (probs[5, 1] + probs[5, 7]) * 40 > 0.5


def test_no_tokens(ctx):
    out = sinkhorn(ctx, np.zeros((0, 5)))
    assert (host(out["log_d1"]) == 0).all() and host(out["iterations"]) == 0 and host(out["error"]) == 0
    out = sinkhorn(ctx, np.zeros((4, 5)), num_tokens=zeros(1, "int64"))
    assert (host(out["log_d1"]) == 0).all() and np.isnan(host(out["probs"])).all()


@pytest.mark.parametrize("count_dtype", ("int32", "int64"))
def test_true_count(ctx, rng, count_dtype):
    logits = rounded(rng.standard_normal((90, 8)), "fp32")
    few = int(rng.integers(1, 90))
    fields, loop = options(max_iterations=3, tolerance=1e-30)
    spoiled = np.concatenate([logits[:few], np.full((90 - few, 8), np.nan)])
    out = sinkhorn(ctx, spoiled, num_tokens=array([few], count_dtype), **fields)
    probs, *_ = textbook(logits[:few], **loop)
    assert_close(host(out["probs"])[:few], probs, "fp32", factor=3)
    assert np.isnan(host(out["probs"])[few:]).all() and np.isnan(host(out["log_d0"])[few:]).all()
    fault = report()
    sinkhorn(ctx, logits, num_tokens=array([91], count_dtype), report=fault, **fields)
    assert report_fields(fault) == (libmoe.FAULT_COUNT, 90, 91)


def test_pitch_and_dtypes_of_the_output(ctx, rng, guarded):
    logits = rounded(rng.standard_normal((77, 10)), "bf16")
    wide = array(np.pad(logits, [(0, 0), (3, 4)], constant_values=np.nan), "bf16")
    fields, loop = options(max_iterations=2, tolerance=1e-30)
    reference, *_ = textbook(logits, **loop)
    for dtype in dtypes():
        probs = guarded((77, 10), dtype, pitch=13)
        desc = {"logits_dtype": "bf16", "num_tokens": 77, "num_experts": 10, **fields}
        ctx.run("sinkhorn", desc, {"logits": wide[:, 3:13], "probs": probs})
        assert_close(probs, reference, dtype if dtype != "fp64" else "fp32", factor=3)


def test_repeats_to_the_bit(ctx, rng):
    logits = 3 * rng.standard_normal((3000, 24))
    first, second = sinkhorn(ctx, logits), sinkhorn(ctx, logits)
    assert all((bits(first[name]) == bits(second[name])).all() for name in first)


def test_log_d1_is_the_selection_bias_of_p(ctx, rng):
    logits = rounded(rng.standard_normal((400, 16)) + 2 * rng.standard_normal(16), "fp32")
    out = sinkhorn(ctx, logits)
    top = np.sort((logits + host(out["log_d1"])).argsort(1)[:, -2:])
    assert (top == np.sort(host(out["probs"]).argsort(1)[:, -2:])).all()
    load = np.bincount(top.ravel(), minlength=16)
    assert load.max() < 0.5 * np.bincount(np.sort(logits.argsort(1)[:, -2:]).ravel(), minlength=16).max()


def by_steps(ctx, parts, dtype="fp32", **fields):
    """The loop over ranks that the header describes: outputs of each rank."""
    experts = parts[0].shape[1]
    total = array([sum(len(part) for part in parts)], "fp32")
    ranks = [{"log_d1": empty(experts, "fp32"), "column_mass": empty(experts, "fp32"), "done": empty(1, "int32"),
              "log_d0": empty(len(part), "fp32"), "iterations": empty(1, "int32"), "error": empty(1, "fp32")} for part in parts]
    first = -2 if fields.get("preset") == libmoe.SINKHORN_NEOX else 0
    for step in range(first, fields["max_iterations"] + 1):
        for part, rank in zip(parts, ranks):
            desc = {"logits_dtype": dtype, "num_tokens": len(part), "num_experts": experts, **fields}
            args = {"round": step, "logits": array(part, dtype), "total_tokens": total, **rank}
            ctx.run("sinkhorn_step", desc, args)
        masses = np.stack([host(rank["column_mass"]) for rank in ranks])
        together = masses.max(0) if step == -2 else masses.sum(0)
        for rank in ranks:
            rank["column_mass"][:] = array(together, "fp32")
    return ranks


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("preset", PRESETS)
def test_steps_over_ranks_are_the_whole_batch(ctx, rng, preset, dtype):
    logits = rounded(2 * rng.standard_normal((300, 20)) + rng.standard_normal(20), dtype)
    parts = [logits[:100], logits[100:100], logits[100:250], logits[250:]]
    fields, loop = options(preset, max_iterations=int(rng.integers(1, 7)), tolerance=1e-30)
    ranks = by_steps(ctx, parts, dtype, **fields)
    log_p, d0, d1, count, error = logarithmic(logits, **loop)
    for rank in ranks:
        check_logs({"log_d0": d0, "log_d1": rank["log_d1"]}, (None, d0, d1))
        check_count(rank, count)
        assert math.isclose(float(host(rank["error"])[0]), error, rel_tol=1e-3, abs_tol=1e-5)
    log_d0 = np.concatenate([host(rank["log_d0"]) for rank in ranks])
    assert_close(np.exp(logits + log_d0[:, None] + host(ranks[0]["log_d1"])), np.exp(log_p), "fp32", factor=10)


def test_steps_after_convergence_do_nothing(ctx, rng):
    logits = rounded(rng.standard_normal((200, 8)), "fp32")
    fields, loop = options(max_iterations=50, tolerance=1e-2)
    (rank,) = by_steps(ctx, [logits], **fields)
    _, _, d1, count, error = logarithmic(logits, **loop)
    assert host(rank["done"]) != 0 and host(rank["iterations"]) == count < 50
    check_logs({"log_d0": np.zeros(1), "log_d1": rank["log_d1"]}, (None, np.zeros(1), d1))
    assert (host(rank["column_mass"]) == 0).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_steps_with_extreme_logits(ctx, rng, preset):
    logits = rounded(1e4 * rng.uniform(-1, 1, (50, 6)), "fp32")
    logits[:, 3] = -np.inf
    fields, loop = options(preset, max_iterations=4, tolerance=1e-30)
    (rank,) = by_steps(ctx, [logits], **fields)
    _, d0, d1, *_ = logarithmic(logits, **loop)
    check_logs(rank, (None, d0, d1), slack=1e-3)


def test_steps_of_no_tokens(ctx):
    (rank,) = by_steps(ctx, [np.zeros((0, 5))], max_iterations=2)
    assert (host(rank["log_d1"]) == 0).all() and host(rank["done"]) != 0


@pytest.mark.parametrize("fields, words", [
    ({"num_experts": 0}, "num_experts is 0; at least 1"),
    ({"num_experts": 1025}, "num_experts is 1025; at most 1024"),
    ({"preset": 3}, "preset is 3"),
    ({"start": -1}, "start is -1"),
    ({"stop": 3}, "stop is 3"),
    ({"max_iterations": -1}, "max_iterations is -1; at least 0"),
    ({"tolerance": -1.0}, "tolerance is -1; not negative"),
    ({"tolerance": math.nan}, "tolerance is NaN"),
    ({"tolerance": math.inf}, "tolerance is inf"),
    ({"logits_dtype": "int32"}, "logits_dtype is INT32"),
])
def test_refusals(ctx, fields, words):
    with pytest.raises(libmoe.InvalidArgument, match=words):
        ctx.run("sinkhorn", {"logits_dtype": "fp32", "num_tokens": 4, "num_experts": 8, **fields},
                {"logits": zeros((4, 8), "fp32"), "log_d1": empty(8, "fp32")})


@pytest.mark.parametrize("step, preset", [(-1, "DEFAULT"), (5, "DEFAULT"), (-3, "NEOX"), (4, "NEOX")])
def test_rounds_that_do_not_exist(ctx, step, preset):
    state = {"log_d1": zeros(8, "fp32"), "column_mass": zeros(8, "fp32"), "done": zeros(1, "int32")}
    desc = {"logits_dtype": "fp32", "num_tokens": 4, "num_experts": 8, "preset": getattr(libmoe, "SINKHORN_" + preset)}
    with pytest.raises(libmoe.InvalidArgument, match=f"args.round is {step}"):
        ctx.run("sinkhorn_step", desc | ({"max_iterations": 4} if preset == "DEFAULT" else {}),
                {"round": step, "logits": zeros((4, 8), "fp32"), **state})
