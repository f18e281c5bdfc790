"""make test: every test there is, stage by stage, and one line at the end that counts them.

RECORD=1 also writes how long they took to benches/results/test.json.
"""

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
CTEST = str(Path(PYTHON).with_name("ctest"))
CMAKE = str(Path(PYTHON).with_name("cmake"))
BUILD = ROOT / "build" / "consumers"
INSTALLED = ROOT / "build" / "installed"


class Run:
    """Counts what the stages print."""

    def __init__(self):
        self.passed = self.failed = 0
        self.broken = []
        self.began = time.monotonic()

    def stage(self, name, *commands, **environment):
        print(f"\n== {name} ({time.monotonic() - self.began:.0f} s)", flush=True)
        for command in commands:
            code, output = echo(command, environment)
            passed, failed = count(output)
            self.passed += passed
            # A command that fails before it counts anything is one failure.
            self.failed += failed or int(code != 0)
            if code != 0:
                self.broken.append(f"{name}: {' '.join(map(str, command))} ended with {code}")
                return False
        return True


def echo(command, environment):
    """Runs a command; its output is shown as it comes, and returned."""
    process = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, env=os.environ | environment, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait(), lines


def count(lines):
    passed = failed = 0
    for line in lines:
        if match := re.match(r"test result: \w+\. (\d+) passed; (\d+) failed", line):  # cargo
            passed, failed = passed + int(match[1]), failed + int(match[2])
        elif match := re.match(r"\d+% tests passed, (\d+) tests? failed out of (\d+)", line):  # ctest
            passed, failed = passed + int(match[2]) - int(match[1]), failed + int(match[1])
        elif re.match(r"=* ?\d+ (passed|failed|error|skipped).* in [\d.]+s", line):  # pytest
            numbers = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|error)", line)}
            passed += numbers.get("passed", 0)
            failed += numbers.get("failed", 0) + numbers.get("error", 0)
    return passed, failed


def install_torch():
    """Begins to install PyTorch and Transformers while the library is built; None where they are not wanted or there already."""
    wanted = [name for name in ("torch", "transformers") if not installed(name)]
    if os.environ.get("TORCH") == "0" or not wanted:
        return None
    print(f"== installing {' and '.join(wanted)} into .venv meanwhile, 2.4 GB (TORCH=0 leaves them out)", flush=True)
    return subprocess.Popen([ROOT / "scripts/setup.sh", *wanted], stdout=subprocess.DEVNULL)


def installed(name):
    """Whether setup.sh has installed this list of requirements as it is now."""
    stamp = ROOT / ".venv" / f"{name}.installed"
    return stamp.exists() and stamp.read_text() == (ROOT / f"scripts/requirements/{name}.txt").read_text()


def installed_library():
    """Installs, and moves what is installed: nothing in it may depend on its place."""
    first = ROOT / "build" / "install-here"
    for folder in (first, INSTALLED, BUILD):
        shutil.rmtree(folder, ignore_errors=True)
    yield "sh", "-c", f"scripts/install.sh '{first}' && mv '{first}' '{INSTALLED}'"
    yield CMAKE, "-S", "tests/consumers", "-B", BUILD, f"-DCMAKE_PREFIX_PATH={INSTALLED}"
    yield CMAKE, "--build", BUILD, "--parallel", "2"
    yield CTEST, "--test-dir", BUILD, "--output-on-failure"


def record(run, minutes):
    sys.path.insert(0, str(ROOT / "bindings" / "python"))
    from libmoe.bench.record import commit, cpu_name

    figures = {"device": cpu_name(), "date": datetime.date.today().isoformat(), "commit": commit(), "minutes": round(minutes, 1),
               "passed": run.passed, "failed": run.failed}
    (ROOT / "benches/results/test.json").write_text(json.dumps(figures, indent=1) + "\n")


def main():
    run = Run()
    torch = install_torch()
    library = os.environ.get("LIBMOE") or str(ROOT / "target/release/libmoe.so")
    built = run.stage("building libmoe", ["scripts/build.sh"])
    if built and not os.environ.get("LIBMOE"):
        run.stage("Rust", ["scripts/build.sh", "test"])
    if built:
        run.stage("C and C++ programs on the installed library", *installed_library())
        if torch and torch.wait() != 0:
            print("\n== PyTorch or Transformers could not be installed: their tests are skipped", flush=True)
        device = ["--device", os.environ["DEVICE"]] if os.environ.get("DEVICE") else []
        run.stage("Python", [PYTHON, "-m", "pytest", "-q", "tests/python", *device], LIBMOE=library)
    minutes = (time.monotonic() - run.began) / 60
    print(f"\n== {minutes:.1f} minutes", *run.broken, sep="\n")
    if os.environ.get("RECORD"):
        record(run, minutes)
    print(f"{run.passed} passed, {run.failed} failed")
    sys.exit(run.failed != 0)


if __name__ == "__main__":
    main()
