"""load_report, python -m libmoe.doctor, python -m libmoe.profile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import harness
import libmoe
from libmoe import _library, doctor

ROOT = Path(__file__).resolve().parents[2]


def module(*arguments, **environment):
    environment = os.environ | {"LIBMOE": _library.locate(), "PYTHONPATH": str(ROOT / "bindings" / "python")} | environment
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, env=environment)


def test_figures_of_load():
    even = libmoe.load_report(harness.array(np.arange(12).reshape(4, 3) % 4, "int32"), 4)
    assert (even.gini, even.max_over_mean, even.idle, even.empty) == (0, 1, 0, 0)
    one = libmoe.load_report(np.array([[2, 2], [2, -1], [7, 2]]), 4)
    assert list(one.counts) == [0, 0, 4, 0] and (one.gini, one.max_over_mean, one.idle, one.empty) == (0.75, 4, 3, 2)
    # Half of the mean absolute difference over the mean.
    counts = np.array([3, 1, 4, 1, 5])
    report = libmoe.load_report(np.repeat(np.arange(5), counts))
    expected = np.abs(counts[:, None] - counts).mean() / 2 / counts.mean()
    assert abs(report.gini - expected) < 1e-12
    assert libmoe.load_report(np.zeros((0, 2), np.int32), 3).gini == 0
    with pytest.raises(TypeError, match="float64"):
        libmoe.load_report(np.zeros(3))


def test_chart_of_load(tmp_path):
    text = str(libmoe.load_report(np.repeat([0, 1, 3], [48, 24, 1])))
    lines = text.splitlines()
    assert "Gini" in lines[0] and "idle 1" in lines[0]
    assert lines[1].count("█") == 48 and lines[2].count("█") == 24 and lines[3].split() == ["2", "0"] and lines[4].endswith(" 1")
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    libmoe.load_report(np.arange(8)).save(tmp_path / "load.png")
    assert (tmp_path / "load.png").stat().st_size > 1000


def test_doctor():
    done = module("libmoe.doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "libmoe works here" in done.stdout and libmoe.version() in done.stdout
    assert "[ok] self-test cpu" in done.stdout
    if not harness.on_cpu():
        assert "[ok] self-test cuda:0" in done.stdout


def test_doctor_where_the_library_is_missing():
    done = module("libmoe.doctor", LIBMOE="/nowhere/libmoe.so")
    assert done.returncode == 1 and "[!!] libmoe.so" in done.stdout and "pip install ./bindings/python" in done.stdout
    assert "broken: libmoe.so" in done.stdout


def test_the_doctor_s_reference_is_independent(monkeypatch):
    """A wrong result is found out."""
    right = libmoe.expert_mlp_fwd

    def wrong(*arguments, **options):
        out = right(*arguments, **options)
        return out._replace(y=out.y * 1.05)

    assert doctor._self_test("cpu", np.asarray).state == doctor.GOOD
    monkeypatch.setattr(libmoe, "expert_mlp_fwd", wrong)
    assert doctor._self_test("cpu", np.asarray).state == doctor.BROKEN


def test_profile(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    done = module("libmoe.profile", "mixtral", "--device", harness.device.name, "--shrink", "64", "--tokens", "32", "--repeats", "2",
                  "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "profile.json").read_text())
    assert set(figures["seconds"]) == {"forward, T=32", "forward and backward, T=32", "decode, T=1", "decode, T=8", "decode, T=32"}
    assert all(row["libmoe"] > 0 for row in figures["seconds"].values())
    assert "MixtralExperts: 8 experts" in done.stdout and (tmp_path / "profile.png").exists()
    done = module("libmoe.profile", "llama")
    assert done.returncode == 1 and "has no experts that use Transformers' experts interface" in done.stderr
