"""Runs the benchmark's sections, prints a table, writes JSON and pictures."""

from __future__ import annotations

import argparse
import traceback
from pathlib import Path

import libmoe

from . import method, picture, record, targets
from .peers import policy


def names(text: str) -> frozenset[str]:
    return frozenset(filter(None, text.split(",")))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m libmoe.bench", description=__doc__)
    parser.add_argument("--only", default="", help="keys, separated by commas; default: all that this machine can run")
    parser.add_argument("--out", type=Path, default=Path("benches/results"), help="folder of the results")
    parser.add_argument("--device", default=None, help="cpu or cuda:N; default: each section's own")
    parser.add_argument("--peers", type=names, help="peers to run beside, of DeepGEMM, SonicMoE and SGLang; default: all")
    parser.add_argument("--peer-shapes", type=names, help="shapes at which they run; default: all")
    parser.add_argument("--peer-seconds", type=float, default=policy.settings.seconds, help="what a peer may take for a shape")
    parser.add_argument("--peer-cache", type=Path, help="folder that keeps what they compile")
    args = parser.parse_args()
    policy.settings.names, policy.settings.shapes, policy.settings.seconds = args.peers, args.peer_shapes, args.peer_seconds
    if args.peer_cache:
        policy.keep_compiled(args.peer_cache.resolve())
    only = set(filter(None, args.only.split(",")))
    rows, details = [], {}
    for section in targets.SECTIONS:
        if only and section.KEY not in only:
            continue
        device = args.device or ("cpu" if section.NEEDS == "cpu" else "cuda:0")
        try:
            with libmoe.Context(device) as ctx:
                measured, details[section.KEY] = section.run(ctx)
        except Exception as error:
            traceback.print_exc()
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            measured = [record.row(section.KEY, *r, None, "", reason=reason) for r in section.ROWS]
        else:
            details[section.KEY].update(date=measured[0]["date"], commit=measured[0]["commit"])
        rows += measured
        print(record.table(measured), flush=True)
    record.write(args.out, rows, details)
    picture.draw(args.out, details)
    print(f"written to {args.out}; GPU: {method.gpu_state()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
