"""Trains a small Mixtral on the sources of Python's standard library twice, with libmoe and with the eager implementation,
from the same seed, and draws both loss curves: they lie on each other.

    python examples/transformers/train.py [--device cuda:0] [--steps 300] [--out FOLDER]
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers

import libmoe.transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "demo"))
import text  # noqa: E402

CONTEXT, BATCH = 128, 16
IMPLEMENTATIONS = ("libmoe", "eager")


def build(device):
    """A byte-level Mixtral of 4 layers with 8 experts."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=256, hidden_size=128, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=CONTEXT, output_router_logits=True)
    return transformers.MixtralForCausalLM(config).to(device)


def train(implementation, data, steps, device):
    """The loss of each step, and the seconds of them all."""
    model = build(device)
    model.set_experts_implementation(implementation)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    rng, losses, begin = np.random.default_rng(0), [], time.monotonic()
    for step in range(steps):
        starts = rng.integers(0, len(data) - CONTEXT, BATCH)
        ids = torch.from_numpy(data[starts[:, None] + np.arange(CONTEXT)].astype(np.int64)).to(device)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        if step % max(1, steps // 10) == 0:
            print(f"{implementation:7s} step {step:4d}  loss {losses[-1].item():.4f}", flush=True)
    return torch.stack(losses).cpu().tolist(), time.monotonic() - begin


def draw(path, curves):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2), constrained_layout=True)
    for (name, losses), style in zip(curves.items(), ({"linewidth": 4, "alpha": 0.4}, {"linewidth": 1, "color": "black"})):
        axes.plot(losses, label=name, **style)
    axes.set(xlabel="step", ylabel="loss", title="A small Mixtral of Transformers, same seed")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("demo-output"))
    options = parser.parse_args()
    libmoe.transformers.register()
    data, _ = text.load()
    runs = {name: train(name, data, options.steps, options.device) for name in IMPLEMENTATIONS}
    curves = {name: losses for name, (losses, _) in runs.items()}
    apart = max(abs(a - b) for a, b in zip(*curves.values()))
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "CPU"
    options.out.mkdir(parents=True, exist_ok=True)
    figures = {"device": name, "steps": options.steps, "largest_difference": apart, "last": {k: v[-1] for k, v in curves.items()},
               "seconds": {key: seconds for key, (_, seconds) in runs.items()}, "curves": curves}
    (options.out / "transformers-training.json").write_text(json.dumps(figures) + "\n")
    try:
        draw(options.out / "transformers-training.png", curves)
    except ImportError:
        print("matplotlib is not installed: no picture")
    print(f"losses at the end: {figures['last']}, at most {apart:.4f} apart; written to {options.out}")


if __name__ == "__main__":
    main()
