"""Writes the README's table of speed from benches/results/targets.json.

    python3 benches/speed_table.py
"""

import json
import math
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benches/speed_table.py writes from here -->\n", "<!-- to here -->\n"
WHAT = {
    "gemm": "grouped GEMM, forward and dgrad",
    "wgrad": "gradients of weights",
    "mlp_fwd": "expert MLP, forward",
    "mlp_train": "expert MLP, forward and backward",
    "mlp_memory": "its memory at the peak",
    "decode": "expert MLP of 1 to 128 tokens",
    "dispatch": "dispatch and combine",
    "plan": "dispatch plan",
    "router": "router",
    "router_logits": "router's GEMM",
    "sinkhorn": "Sinkhorn",
    "transformers": "a layer of Transformers",
    "portable": "expert MLP forward by the portable kernels",
    "host": "host time of a call",
    "cpu": "grouped GEMM on the CPU",
}
# Of these less is better.
COSTS = ("us", "GB at the peak")


def times_as_good(row):
    return row["peer"] / row["ours"] if row["unit"] in COSTS else row["ours"] / row["peer"]


def line(what, rows):
    run = [row for row in rows if row["ours"] and row["peer"]]
    ratios = [times_as_good(row) for row in run]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    beside = "; ".join(sorted({row["peer_name"].split(", aligned")[0] for row in run}))
    met, dates = sum(row["met"] is True for row in rows), sorted({row["date"] for row in run})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"| {what} | {beside} | {min(ratios):.2f} to {max(ratios):.2f} | {mean:.2f} | {met} of {len(rows)} | {when} |\n"


def table(targets):
    """Ratios: how many times as fast, or as little memory, as what is beside; `limit` is what a target allows."""
    head = "| what | beside | ratio, from to | mean | targets met | measured |\n|---|---|---|---|---|---|\n"
    rows_of = {key: [row for row in targets if row["key"] == key] for key in WHAT}
    return head + "".join(line(WHAT[key], rows) for key, rows in rows_of.items() if any(row["ours"] for row in rows))


def with_table(text, targets):
    """The README with a new table between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table(targets) + END + rest.split(END)[1]


def main():
    readme = ROOT / "README.md"
    targets = json.loads((ROOT / "benches/results/targets.json").read_text())
    readme.write_text(with_table(readme.read_text(), targets))


if __name__ == "__main__":
    main()
