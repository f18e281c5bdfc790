"""Options and fixtures of all Python tests: pytest tests/python [--device cuda:0] [--seed N]."""

import importlib.util
import os
import secrets
import sys
from pathlib import Path

# References are small: the waiting threads of BLAS and torch would only take the cores from the library.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402

# LIBMOE_INSTALLED=1 tests the installed package instead of the source tree's.
if not os.environ.get("LIBMOE_INSTALLED"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bindings" / "python"))

import harness  # noqa: E402
import libmoe  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="cpu or cuda:N (needs torch)")
    parser.addoption("--seed", type=int, help="repeats a run; by default each run draws its own")


def pytest_configure(config):
    config.addinivalue_line("markers", "cpu: runs on the CPU backend alone")
    harness.device.name = config.getoption("--device")
    config.seed = config.getoption("--seed")
    if config.seed is None:
        config.seed = secrets.randbits(32)


def pytest_report_header(config):
    return f"libmoe: --device {harness.device.name} --seed {config.seed}"


def pytest_terminal_summary(terminalreporter):
    """Which packages' tests were skipped for want of the package."""
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        terminalreporter.write_line(f"skipped: the tests of {' and '.join(missing)}, which {'are' if missing[1:] else 'is'} not installed")


def pytest_collection_modifyitems(config, items):
    if harness.device.name != "cpu":
        skip = pytest.mark.skip(reason="of the CPU backend alone")
        for item in items:
            if item.get_closest_marker("cpu"):
                item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        report.sections.append(("seed", f"repeat with --seed {item.config.seed}"))
    return report


@pytest.fixture(scope="session")
def ctx():
    """A context on --device."""
    with libmoe.Context(harness.device.name) as context:
        yield context


@pytest.fixture
def rng(request):
    """Random numbers that differ from run to run and from test to test."""
    return np.random.default_rng([request.config.seed, *request.node.nodeid.encode()])


@pytest.fixture(autouse=True)
def seeded(rng):
    """torch's numbers follow --seed too, where it is imported; the test's own stay the same with and without it."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(int(rng.spawn(1)[0].integers(1 << 31)))


@pytest.fixture
def guarded():
    """guarded(shape, dtype, pitch=None): a poisoned output; what lies around it and between its rows is checked at the
    end of the test, or at once by guarded.check()."""
    guards = harness.Guards()
    yield guards
    guards.check()
