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


def test_doctor_knows_what_is_too_old(monkeypatch):
    versions = {"numpy": "1.23.5", "torch": "2.7.1", "transformers": "5.6.9", "matplotlib": "3.10.0"}
    monkeypatch.setattr(doctor.importlib.metadata, "version", versions.get)
    old = {finding.what: finding.advice for finding in doctor.packages() if finding.state == doctor.MISSING}
    assert old.keys() == {"numpy", "torch", "transformers"} and "5.7" in old["transformers"] and "2.8" in old["torch"]
    monkeypatch.setattr(doctor, "_nvidia_smi", lambda field: ["a GPU"])
    monkeypatch.setitem(sys.modules, "torch", None)
    (_, gpu) = doctor.self_tests()
    assert gpu.state == doctor.MISSING and gpu.advice == "pip install torch"


def test_profile_s_models(tmp_path):
    """A model type of every family, a JSON of any name, a folder; what a configuration leaves out is named."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pytest.importorskip("transformers", reason="transformers is not installed")
    import transformers
    import transformers_families as families
    from libmoe import profile

    meta, known, unclear = torch.device("meta"), 0, {}
    for family in sorted(set(families.modules()) - {"inkling"}):  # whose model type has another name
        try:
            experts, top_k = profile.load(family, 64, meta, torch.bfloat16)
            assert 1 <= top_k <= experts.num_experts and experts.down_proj.dtype == torch.bfloat16
            known += 1
        except SystemExit as error:
            unclear[family] = str(error)
    assert known > 40 and all("experts that cannot be made: " in why for why in unclear.values()), unclear
    config = transformers.DeepseekV2Config(n_routed_experts=6, moe_intermediate_size=24, hidden_size=32, num_experts_per_tok=3)
    (tmp_path / "mine.json").write_text(config.to_json_string())
    config.save_pretrained(tmp_path / "folder")
    for model in (tmp_path / "mine.json", tmp_path / "folder", tmp_path / "folder" / "config.json"):
        experts, top_k = profile.load(str(model), 1, meta, torch.float32)
        assert experts.down_proj.shape == (6, 32, 24) and top_k == 3
    with pytest.raises(SystemExit, match=r"does not say how many experts a token has \(num_experts_per_tok\)"):
        profile.load("deepseek_v2", 64, meta, torch.float32)


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
