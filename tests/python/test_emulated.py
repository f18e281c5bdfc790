"""Hopper's kernels with no GPU: run on the host by tests/emulator, against the float64 reference."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mock_driver

pytestmark = pytest.mark.cpu

sys.path.insert(0, str(mock_driver.ROOT / "tests" / "emulator"))

import build  # noqa: E402

PROCESSES, CASES = 2, 20


def test_expert_mlps(tmp_path, request):
    if build.headers() is None:
        pytest.skip("CUDA's headers are not installed")
    kernels = mock_driver.kernels()
    environment = os.environ | mock_driver.environment(build.build(tmp_path), kernels)
    # Few multiprocessors, so that a block has more than one tile.
    environment |= {"MOCK_MULTIPROCESSORS": "4"}
    script = Path(__file__).with_name("emulated.py")
    children = [
        subprocess.Popen([sys.executable, script, str(request.config.seed + i), str(CASES)], env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for i in range(PROCESSES)
    ]
    outputs = [child.communicate(timeout=600)[0] for child in children]
    for child, output in zip(children, outputs):
        assert child.returncode == 0, output[-3000:]
