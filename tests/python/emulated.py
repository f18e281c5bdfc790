"""Tests on emulated kernels: run by test_emulated.py in processes of their own, which have the emulator's libcuda.so.1 on their library
path. Of other files' tests as a plugin; of the expert MLP and the router, whose options must be those of the kernels, by itself:

    python -m pytest -p emulated --device emulated test_dispatch.py
    python emulated.py large|few|router SEED COUNT
"""

import sys
from types import SimpleNamespace

import numpy as np

import expert_mlp_reference as reference
import harness
import libmoe
import mock_driver
import test_router


def pytest_configure(config):
    harness._to_torch = lambda x: SimpleNamespace(to=lambda device: x)
    libmoe.Context = mock_driver.Context


def options(rng, few):
    """A case that Hopper's kernels take, or those for few rows: 16-bit, rows that are multiples of 16 bytes, ragged otherwise."""
    activation = str(rng.choice(list(reference.ACTIVATIONS)))
    gated = activation in reference.GATED
    order = str(rng.choice(list(reference.ORDERS))) if gated else "GATE_FIRST"
    bound, experts = int(rng.choice([1, 7, 40] if few else [1, 7, 40, 200, 300])), int(rng.integers(1, 9 if few else 5))
    ids = reference.ROUTINGS[str(rng.choice(list(reference.ROUTINGS)))](rng, bound, experts, int(rng.integers(1, min(experts, 2) + 1)))
    plan = reference.Plan(ids, experts, int(rng.integers(bound // 2, bound + 1)), int(rng.choice([1, 1, 4, 16])), int(rng.integers(1, 9)))
    pick = lambda: str(rng.choice(["bf16", "fp32"]))
    return dict(
        dtype="bf16", d=int(rng.choice([64, 72, 200, 456])), f=int(rng.choice([8, 40, 136, 200, 264])), pad=8, activation=activation,
        order=order, block=1, plan=plan, split=bool(gated and order != "GATE_INTERLEAVED" and rng.random() < 0.3), y_dtype=pick(),
        bias_dtype=pick(), dw_dtype=pick())


ROUTER_SIZES = [
    # tokens, experts, top_k, groups, kept groups
    (33, 8, 2, 1, 1), (1100, 8, 8, 1, 1), (7, 6, 6, 1, 1), (1, 16, 4, 2, 1), (330, 64, 8, 8, 4), (21, 48, 6, 3, 2), (12, 33, 5, 1, 1),
    (170, 128, 8, 8, 4), (9, 96, 1, 4, 3), (40, 256, 8, 8, 4), (7, 160, 6, 8, 3), (6, 512, 8, 16, 8), (3, 300, 8, 5, 2), (0, 8, 2, 1, 1),
]


def is_common(case):
    """Whether the router has kernels of its own for it (src/cuda/router/quick.rs)."""
    grouped = case["num_groups"] > 0
    whole = not grouped or (case["num_experts"] > 8 and case["num_experts"] % (4 * case["num_groups"]) == 0)
    sequences = case["aux_loss"] != "off" and case["aux_scope"] == "sequence"
    return whole and not (sequences and (case["sequence_layout"] == "offsets" or case["num_sequences"] > 16))


def check_routers(ctx, guarded, rng, count):
    test_router.FACTORS.update(
        size=ROUTER_SIZES, math=["default"], groups=[None, "top2_sum", "max"], selection=["topk"], aux_scope=["batch", "global", "sequence"],
        values=["randn", "ties", "holes", "large"])
    done = 0
    for chosen in test_router.all_pairs(rng):
        p = test_router.build(rng, chosen)
        if done == count or not is_common(p["case"]):
            continue
        done += 1
        print(f"{done}: {p['case']}, true tokens {p['true']}", flush=True)
        out, inputs = test_router.forward(ctx, guarded, rng, p)
        test_router.check_forward(p, out)
        test_router.check_report(p, inputs)
        if rng.random() < 0.5:
            # Backward takes any ids: missing, and an expert twice.
            ids = rng.integers(-1, p["case"]["num_experts"], out["ids"].shape)
            out["ids"][:] = harness.array(ids, p["case"]["ids"])
        if not test_router.refused(p["case"]):
            test_router.backward(ctx, guarded, rng, p, out)


def main():
    kind, seed, count = sys.argv[1], *map(int, sys.argv[2:])
    harness.device.name = "emulated"
    pytest_configure(None)
    if kind == "router":
        guarded = harness.Guards()
        with libmoe.Context("cuda:0") as ctx:
            check_routers(ctx, guarded, np.random.default_rng(seed), count)
        guarded.check()
        return
    if kind == "large":
        # Few rows would go to the kernels for them.
        described = reference.Case.desc
        reference.Case.desc = lambda case, **changes: described(case, batch_invariant=libmoe.ON, **changes)
    # Weights that begin between multiples of 16 bytes go to the portable kernels.
    reference.Run.somewhere = lambda run, w: harness.array(w, run.case.dtype)
    with libmoe.Context("cuda:0") as ctx:
        for number in range(count):
            rng, guarded = np.random.default_rng([seed, number]), harness.Guards()
            print(f"{kind} seed {seed}, case {number}", flush=True)
            reference.check(ctx, rng, guarded, **options(rng, kind == "few"))
            guarded.check()


if __name__ == "__main__":
    main()
