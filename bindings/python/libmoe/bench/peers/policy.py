"""How a peer is treated: it is only imported, it may fail or be slow without ending anything, and wrong results do not count."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# A bf16 result of another order of sums is within this of ours.
TOLERANCE = 0.02


@dataclass
class Settings:
    """What the command line says: peers and shapes to run (None: all), and the seconds that a peer may take for a shape."""

    names: frozenset[str] | None = None
    shapes: frozenset[str] | None = None
    seconds: float = 600


settings = Settings()


def keep_compiled(folder: Path) -> None:
    """Where peers keep what they compile and tune, unless the environment says so already."""
    for variable in ("QUACK_CACHE_DIR", "TRITON_CACHE_DIR", "DG_JIT_CACHE_DIR"):
        os.environ.setdefault(variable, str(folder / variable.split("_")[0].lower()))


class Absent(Exception):
    """A peer that does not run here, and why."""


class TimeLimit(BaseException):
    """A peer took too long. Not an Exception: tuners go on after those."""


@contextlib.contextmanager
def time_limit(seconds: float):
    """Raises TimeLimit in the block after so many seconds, and again each second until it is left."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread alone
        return

    def expire(*_):
        raise TimeLimit(f"took more than {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def attempt(name: str, shape: str, make: Callable):
    """(what make() gives, None), or (None, why this peer gives nothing for this shape)."""
    if settings.names is not None and name not in settings.names:
        return None, f"{name} was not asked for"
    if settings.shapes is not None and shape not in settings.shapes:
        return None, f"{name} was not asked for at {shape}"
    try:
        with time_limit(settings.seconds):
            return make(), None
    except Absent as absent:
        reason = str(absent)
    except (Exception, TimeLimit) as error:
        reason = f"{name}: {type(error).__name__}: {str(error)[:200]}"
    print(f"{shape}: {reason}", flush=True)
    return None, reason


def load(name: str, importing: Callable):
    """The modules of a peer; Absent where they cannot be imported."""
    try:
        return importing()
    except ImportError as error:
        raise Absent(f"{name} is not installed ({error})") from error


def difference(got, expected) -> float:
    """Relative to the expected tensor's norm; nan and inf stay."""
    return float((got.float() - expected.float()).norm() / expected.float().norm())


def require_same(name: str, got, expected) -> None:
    error = difference(got, expected)
    if not error <= TOLERANCE:
        raise Absent(f"{name} gives another result: relative difference {error:.2g}")
