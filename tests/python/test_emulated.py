"""Kernels with no GPU: run on the host by tests/emulator, against the float64 references."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mock_driver

pytestmark = pytest.mark.cpu

sys.path.insert(0, str(mock_driver.ROOT / "tests" / "emulator"))

import build  # noqa: E402

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def environment(tmp_path_factory, request):
    if build.headers() is None:
        pytest.skip("CUDA's headers are not installed")
    found = mock_driver.environment(build.build(tmp_path_factory.mktemp("emulator")), mock_driver.kernels())
    # Few multiprocessors, so that a block has more than one tile, and warps that are late at random.
    return os.environ | found | {
        "MOCK_MULTIPROCESSORS": "4", "EMULATOR_SEED": str(request.config.seed), "PYTHONPATH": f"{found['PYTHONPATH']}:{HERE}"}


def run_all(commands, environment):
    """Side by side; each succeeds."""
    children = [
        subprocess.Popen([sys.executable, *map(str, command)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command in commands
    ]
    # A loaded machine takes ten times as long.
    outputs = [child.communicate(timeout=1800)[0] for child in children]
    for child, output in zip(children, outputs):
        assert child.returncode == 0, output[-3000:]


def test_expert_mlps(environment, request):
    kinds = ("large", 10), ("few", 6)
    run_all([(HERE / "emulated.py", kind, request.config.seed, cases) for kind, cases in kinds], environment)


def run_tests(file, which, environment, request):
    options = ("-q", "-p", "emulated", "-p", "no:cacheprovider", "--device", "emulated", "--seed", request.config.seed)
    run_all([("-m", "pytest", *options, HERE / file, "-k", which)], environment)


def test_routers(environment, request):
    """The common cases: on one multiprocessor, whose warps have several tokens after each other, and on four, whose sums are joined."""
    for number, multiprocessors in enumerate(("1", "4")):
        command = (HERE / "emulated.py", "router", request.config.seed + number, 50)
        run_all([command], environment | {"MOCK_MULTIPROCESSORS": multiprocessors})


def test_dispatch_plan(environment, request):
    """Without the tests of many slots, which take minutes."""
    run_tests("test_dispatch.py", "not many_slots", environment, request)


def test_gradients_of_weights(environment, request):
    """Of slots, rows and experts, back through permute and unpermute."""
    run_tests("test_dispatch_permute.py", "rounded_once or dispatch_bwd or combine_bwd and dense", environment, request)


def test_accumulation(environment, request):
    """Gradients that are added to old values, in part copied ahead."""
    run_tests("test_grouped_gemm.py", "small_groups", environment, request)


def test_router_logits(environment, request):
    run_tests("test_router_logits.py", "tiles", environment, request)


def test_sinkhorn(environment, request):
    """Without the tests of many iterations or tokens, which take minutes."""
    run_tests("test_sinkhorn.py", "presets and bf16 and not 3000 or replace or infinities or true_count or no_tokens or pitch", environment, request)
