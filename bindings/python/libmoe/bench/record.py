"""Where results go: ``<key>.json`` of a run, and the rows of ``targets.json``."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import subprocess
from pathlib import Path

FIELDS = ("key", "shape", "routing", "ours", "peer", "peer_name", "unit", "ratio", "wanted", "met", "device", "date", "commit")


def commit() -> str:
    """The commit that was built: from the stamp beside the library, else from git."""
    library = os.environ.get("LIBMOE")
    stamp = Path(library).resolve().parent / "stamp.json" if library else None
    if stamp and stamp.exists():
        return json.loads(stamp.read_text())["commit"]
    try:
        run = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        return run.stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return platform.processor() or "CPU"


def row(key: str, shape: str, routing: str, unit: str, wanted: str, **measured) -> dict:
    """One row of targets.json. Without `ours` it says in `reason` why it was not run."""
    values = dict.fromkeys(FIELDS)
    values.update(key=key, shape=shape, routing=routing, unit=unit, wanted=wanted)
    values.update(date=datetime.date.today().isoformat(), commit=commit())
    values.update(measured)
    return values


def geometric_mean(ratios: list[float], wanted: float) -> dict:
    """The mean of ratios beside what is wanted of it, for a section's detail."""
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return {"ratio": mean, "wanted": wanted, "met": mean >= wanted}


def write(folder: Path, rows: list[dict], details: dict[str, dict]) -> None:
    """Replaces the rows of the keys that were run; the others stay as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "targets.json"
    old = json.loads(path.read_text()) if path.exists() else []
    keys = {r["key"] for r in rows}
    merged = [r for r in old if r["key"] not in keys] + rows
    path.write_text("[\n" + ",\n".join(json.dumps(r) for r in merged) + "\n]\n")
    for key, detail in details.items():
        (folder / f"{key}.json").write_text(json.dumps(detail, indent=1) + "\n")


def table(rows: list[dict]) -> str:
    """The rows as text, for the terminal."""

    def cell(value) -> str:
        return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    heads = ("key", "shape", "routing", "ours", "peer", "peer_name", "unit", "ratio", "wanted", "met")
    lines = [heads] + [tuple(cell(r[h]) for h in heads) for r in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join("  ".join(value.ljust(width) for value, width in zip(line, widths)).rstrip() for line in lines)
