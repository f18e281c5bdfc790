"""The benchmark: ``python -m libmoe.bench``. Method and targets stand in docs/benchmark.md."""
