"""Fixtures of the GPU suite: a context on the GPU, one on the CPU, and fresh random numbers whose seed is printed."""

import random

import pytest

import libmoe

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("these tests need a GPU", allow_module_level=True)


def pytest_addoption(parser):
    parser.addoption("--device", default="cuda:0")
    parser.addoption("--seed", type=int, default=None)


@pytest.fixture(scope="session")
def gpu(request):
    with libmoe.Context(request.config.getoption("--device")) as ctx:
        yield ctx


@pytest.fixture(scope="session")
def cpu():
    with libmoe.Context("cpu") as ctx:
        yield ctx


@pytest.fixture
def rng(request):
    """Python's generator; torch's is seeded alike."""
    seed = request.config.getoption("--seed")
    seed = random.SystemRandom().randrange(1 << 30) if seed is None else seed
    print(f"--seed={seed}")
    torch.manual_seed(seed)
    return random.Random(seed)
