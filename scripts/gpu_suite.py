#!/usr/bin/env python3
"""The GPU suite: see gpu-suite.sh."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("memcheck", "initcheck", "synccheck", "racecheck")
# What compiles or builds here, and what gpu-torch.sh runs.
ELSEWHERE = ("library", "readme", "misuse", "cuda_host", "wheel", "torch_ops", "torch_modes", "torch_layer", "transformers",
             "transformers_parallel", "nllb", "megablocks", "megatron_experts", "tools")


def pytest(name: str, logs: Path, *arguments: str, timeout: int) -> dict:
    """One pytest run: its counts, its failures by name, its seconds."""
    report = logs / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
    begin = time.time()
    with open(logs / f"{name}.log", "w") as log:
        try:
            code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=timeout).returncode
        except subprocess.TimeoutExpired:
            code = "time limit"
    result = {"passed": 0, "failed": 0, "skipped": 0, "seconds": round(time.time() - begin), "exit": code, "failures": []}
    if report.exists():
        for case in xml.parse(report).getroot().iter("testcase"):
            kinds = {child.tag for child in case}
            verdict = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            result[verdict] += 1
            if verdict == "failed":
                result["failures"].append(f"{case.get('classname')}::{case.get('name')}")
    if code not in (0, 1) or (code == 1 and not result["failed"]):
        result["failures"].append(f"pytest ended with {code}")
    return result


def sanitize(tool: str, logs: Path, timeout: int) -> dict:
    """One compute-sanitizer run over the small set that needs no torch."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not os.path.exists(program):
        return {"verdict": "not available", "message": "compute-sanitizer is not installed"}
    command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    command += ["--leak-check", "no"] if tool == "memcheck" else []
    begin = time.time()
    try:
        run = subprocess.run([*command, sys.executable, "tests/gpu/sanitized.py"], cwd=ROOT, capture_output=True, text=True,
                             timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"verdict": "not finished", "message": f"over {timeout} s"}
    text = run.stdout + run.stderr
    (logs / f"{tool}.log").write_text(text)
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    done = re.findall(r"sanitized: .*", text)
    clean = run.returncode == 0 and bool(summary) and bool(done)
    return {
        "verdict": "clean" if clean else "errors" if summary else "not available",
        "message": (summary or [text.strip()[-300:]])[-1],
        "work": (done or ["did not finish"])[-1],
        "seconds": round(time.time() - begin),
    }


def machine() -> dict:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    name, driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    return {"device": name, "driver": driver}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the Python tests alone")
    parser.add_argument("--no-sanitizers", action="store_true")
    parser.add_argument("--only", default="", help="pytest -k expression")
    args = parser.parse_args()
    out = Path(os.environ.get("OUT", ROOT / "benches/results"))
    logs = Path(os.environ.get("OUT", ROOT / "build/gpu-suite"))
    logs.mkdir(parents=True, exist_ok=True)
    stamp = Path(os.environ["LIBMOE"]).resolve().parent / "stamp.json"
    result = {**machine(), "date": datetime.date.today().isoformat(), "seed": int(time.time()) % 100000}
    result["tested"] = json.loads(stamp.read_text()) if stamp.exists() else "unknown: no stamp.json beside the library"
    chosen = ["-k", args.only] if args.only else []
    seed = [f"--seed={result['seed']}"]
    workers = ["-n", "6"] if has_xdist() else []
    ignored = [f"--ignore=tests/python/test_{name}.py" for name in ELSEWHERE]
    result["operations"] = pytest("operations", logs, "tests/python", *ignored, "--device=cuda:0", *seed, *chosen, *workers, timeout=200)
    print("operations", json.dumps(result["operations"]), flush=True)
    if not args.quick:
        result["gpu"] = pytest("gpu", logs, "tests/gpu", "--device=cuda:0", *seed, *chosen, timeout=100)
        print("gpu", json.dumps(result["gpu"]), flush=True)
        if not args.no_sanitizers:
            result["sanitizers"] = {tool: sanitize(tool, logs, timeout=75) for tool in TOOLS}
            print("sanitizers", json.dumps(result["sanitizers"]), flush=True)
    runs = [result[name] for name in ("operations", "gpu") if name in result]
    result["passed"], result["failed"] = (sum(run[key] for run in runs) for key in ("passed", "failed"))
    (out / "gpu-suite.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['passed']} passed, {result['failed']} failed")
    broken = any(run["failures"] for run in runs)
    dirty = any(run["verdict"] == "errors" for run in result.get("sanitizers", {}).values())
    return 1 if broken or dirty else 0


def has_xdist() -> bool:
    try:
        import xdist  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    raise SystemExit(main())
