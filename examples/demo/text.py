"""Text that every machine has: the sources of Python's own standard library."""

import sysconfig
from pathlib import Path

import numpy as np

ELSEWHERE = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def load():
    """(train, held_out) bytes; every twentieth file is held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py") if not ELSEWHERE & set(path.relative_to(root).parts))
    if len(files) < 40:
        raise SystemExit(f"{root} holds {len(files)} Python sources: too few to learn from")
    parts = [np.frombuffer(path.read_bytes() + b"\n", np.uint8) for path in files]
    held_out = parts[::20]
    del parts[::20]
    return np.concatenate(parts), np.concatenate(held_out)


def windows(text, positions, context):
    """The `context` bytes before each position, [T, context], and the byte there, [T]."""
    return text[positions[:, None] + np.arange(-context, 0)].astype(np.int64), text[positions].astype(np.int64)


def unigram_bits(train, held_out):
    """Bits a byte of a model that knows only how often each byte occurs."""
    counts = np.bincount(train, minlength=256) + 1.0
    return float(-np.log2(counts / counts.sum())[held_out].mean())
