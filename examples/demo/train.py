"""Trains a byte-level language model with an MoE layer on the sources of Python's standard library, beside a dense layer of
equal active parameters, and prints what came of it.

    python examples/demo/train.py [--record]      DEVICE=cpu|cuda:0  QUICK=1

The router, the dispatch plan, the experts and the losses, forward and backward, are libmoe's C functions; the rest is NumPy
(on a GPU: torch tensors). Figures and the picture go to demo-output/; --record also writes benches/results/demo.json.
"""

import os

# NumPy's matrices are small here, and its waiting threads would take the cores from libmoe's.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import datetime
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bindings" / "python"))

import libmoe  # noqa: E402
import picture  # noqa: E402
import text  # noqa: E402
from arrays import Arrays  # noqa: E402
from layers import Dense, MoE, error_against_float64  # noqa: E402
from libmoe.bench import record  # noqa: E402
from model import CONTEXT, Adam, Model  # noqa: E402

HIDDEN, WIDTH, EXPERTS, TOP_K = 128, 128, 16, 2
BATCH, RATE = 1024, 8e-3
QUICK = os.environ.get("QUICK", "0") not in ("", "0")
DEVICE = os.environ.get("DEVICE") or "cpu"
STEPS = 200 if QUICK else 1200
BARS = "▁▂▃▄▅▆▇█"


def train(name, model, data, rng):
    """The curves of one training run, with a bar that shows it."""
    xp = model.xp
    optimizer = Adam(xp, model.parameters(), RATE, STEPS)
    run = {"tokens": [], "bits": [], "load": [], "rows": 0}
    start = time.monotonic()
    for step in range(1, STEPS + 1):
        contexts, targets = text.windows(data, rng.integers(CONTEXT, len(data), BATCH), CONTEXT)
        bits, gradients, saved = model.gradients(xp.array(contexts), xp.array(targets))
        optimizer.update(gradients)
        run["tokens"].append(step * BATCH)
        run["bits"].append(bits)
        if isinstance(model.layer, MoE):
            run["rows"] += model.layer.rows(saved)
            run["load"].append(model.layer.load(saved).tolist())
        if step % max(1, STEPS // 100) == 0:
            show(name, step, run, time.monotonic() - start)
    run["seconds"] = time.monotonic() - start
    print(flush=True)
    return run


def show(name, step, run, seconds):
    done = 20 * step // STEPS
    load = np.array(run["load"][-1]) if run["load"] else np.zeros(0)
    # A full bar is twice the even share.
    bars = "".join(BARS[min(7, int(4 * share * len(load)))] for share in load)
    line = f"{name:5s} [{'#' * done}{'.' * (20 - done)}] {np.mean(run['bits'][-50:]):.3f} bits a byte  "
    line += f"{step * BATCH / seconds / 1e3:5.1f} k tokens/s  {'load ' + bars if bars else ''}"
    terminal = sys.stdout.isatty()
    if terminal or step % (STEPS // 5) == 0:
        print(("\r" if terminal else "") + line, end="" if terminal and step < STEPS else "\n", flush=True)


def evaluate(model, held_out):
    """Bits a byte over bytes spread evenly through the held-out files."""
    count = min(len(held_out) - CONTEXT, 1 << (14 if QUICK else 17))
    positions = np.linspace(CONTEXT, len(held_out) - 1, count).astype(np.int64)
    bits = []
    for chunk in np.array_split(positions, -(-count // 4096)):
        contexts, targets = text.windows(held_out, chunk, CONTEXT)
        bits += [model.loss(model.xp.array(contexts), model.xp.array(targets))] * len(chunk)
    return float(np.mean(bits))


def generate(model, rng, length=320, temperature=0.6):
    """Text, byte by byte."""
    start = b"\n\ndef read_line(self):\n"
    written = list(start)
    for _ in range(length):
        logits, _ = model.logits(model.xp.array(np.array([written[-CONTEXT:]])))
        logits = model.xp.host(logits)[0].astype(np.float64) / temperature
        probs = np.exp(logits - logits.max())
        written.append(int(rng.choice(256, p=probs / probs.sum())))
    return bytes(written).decode("ascii", "replace").strip("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write benches/results/demo.json too")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begin = time.monotonic()
    xp, ctx = Arrays(DEVICE), libmoe.Context(DEVICE)
    data, held_out = text.load()
    unigram = text.unigram_bits(data, held_out)
    print(f"libmoe {libmoe.version()} on {DEVICE}: {len(data) / 1e6:.1f} MB of Python to learn from, {BATCH * STEPS / 1e6:.1f} M bytes drawn")

    def model(layer):
        return Model(xp, np.random.default_rng(options.seed), layer, HIDDEN)

    weights = np.random.default_rng(options.seed + 1)
    models = {"MoE": model(MoE(ctx, xp, weights, HIDDEN, WIDTH, EXPERTS, TOP_K)),
              "dense": model(Dense(ctx, xp, weights, HIDDEN, TOP_K * WIDTH))}
    runs = {name: train(name, m, data, np.random.default_rng(options.seed + 2)) for name, m in models.items()}
    bits = {name: evaluate(m, held_out) for name, m in models.items()}

    moe = models["MoE"].layer
    sample, _ = text.windows(held_out, np.linspace(CONTEXT, len(held_out) - 1, 512).astype(np.int64), CONTEXT)
    inputs, _ = models["MoE"].norm(models["MoE"].weights["embedding"][xp.array(sample)].reshape(512, -1) @ models["MoE"].weights["w_in"])
    error, gradient_error = error_against_float64(moe, inputs)
    done, everything = (rows * moe.flops_a_row for rows in (runs["MoE"]["rows"], BATCH * STEPS * EXPERTS))
    share = done / everything

    print(f"\nheld-out bits a byte    MoE {bits['MoE']:.3f}    dense {bits['dense']:.3f}    unigrams {unigram:.3f}")
    print(f"experts' forward FLOPs  {done / 1e9:.0f} G of {everything / 1e9:.0f} G for all experts: {share:.4f}, K/E = {TOP_K / EXPERTS:.4f}")
    print(f"largest error of a layer call against float64  {error:.1e}, of its gradients {gradient_error:.1e}")
    print(f"\n{generate(models['MoE'], np.random.default_rng(options.seed + 3))}\n")

    output = ROOT / "demo-output"
    output.mkdir(exist_ok=True)
    picture.save(output / "demo.png", runs, unigram, bits)
    figures = {
        "device": record.cpu_name() if xp.on_cpu else xp.cuda.get_device_name(DEVICE), "date": datetime.date.today().isoformat(),
        "commit": record.commit(), "quick": QUICK, "experts": EXPERTS, "top_k": TOP_K, "hidden_size": HIDDEN, "ffn_size": WIDTH,
        "training_bytes": BATCH * STEPS, "held_out_bits_a_byte": bits, "unigram_bits_a_byte": unigram,
        "tokens_a_second": {name: BATCH * STEPS / run["seconds"] for name, run in runs.items()},
        "expert_flops_share": share, "error_against_float64": error, "gradient_error_against_float64": gradient_error,
        "seconds": time.monotonic() - begin,
        "mean_load": np.mean(runs["MoE"]["load"][-100:], axis=0).tolist(),
    }
    paths = [output / "demo.json"] + [ROOT / "benches" / "results" / "demo.json"] * options.record
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"{figures['seconds']:.0f} seconds; the picture and the figures are in {output}")


if __name__ == "__main__":
    main()
