"""The benchmark without a GPU: how peers are treated, what its rows say with and without them, and the layouts that peers are given."""

import json
import math
import time

import libmoe
import pytest
from libmoe.bench import decode, gemm, gemm_skew, method, mlp, record, targets, wgrad
from libmoe.bench.peers import deepgemm, policy, sglang, sonic

pytestmark = pytest.mark.cpu

H200 = {"device": "NVIDIA H200"}


@pytest.fixture
def on_h200(monkeypatch):
    monkeypatch.setattr(method, "gpu_state", lambda: dict(H200))


@pytest.fixture
def settings(monkeypatch):
    monkeypatch.setattr(policy, "settings", policy.Settings(seconds=5))
    return policy.settings


# How a peer is treated


def test_a_peer_that_works(settings):
    assert policy.attempt("peer", "olmoe", lambda: 3) == (3, None)


def test_a_missing_package_is_named(settings):
    def make():
        return policy.load("Peer", lambda: __import__("no_such_package_at_all"))

    made, reason = policy.attempt("Peer", "olmoe", make)
    assert made is None and "Peer is not installed" in reason and "no_such_package_at_all" in reason


def test_a_peer_that_fails_says_why(settings):
    made, reason = policy.attempt("peer", "olmoe", lambda: 1 / 0)
    assert made is None and reason == "peer: ZeroDivisionError: division by zero"


def test_a_slow_peer_is_left_even_where_it_goes_on_after_exceptions(settings):
    settings.seconds = 0.2

    def tuner():
        for _ in range(100):
            try:
                time.sleep(0.1)
            except Exception:
                pass

    begin = time.perf_counter()
    made, reason = policy.attempt("peer", "olmoe", tuner)
    assert made is None and "took more than 0.2 s" in reason
    assert time.perf_counter() - begin < 5
    time.sleep(1.1)  # no alarm comes afterwards


def test_peers_and_shapes_that_were_not_asked_for(settings):
    settings.names, settings.shapes = frozenset({"DeepGEMM"}), frozenset({"olmoe"})
    assert policy.attempt("DeepGEMM", "olmoe", lambda: 1) == (1, None)
    assert policy.attempt("SonicMoE", "olmoe", lambda: 1) == (None, "SonicMoE was not asked for")
    assert policy.attempt("DeepGEMM", "mixtral", lambda: 1) == (None, "DeepGEMM was not asked for at mixtral")


def test_compiled_kernels_are_kept_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    for variable in ("QUACK_CACHE_DIR", "DG_JIT_CACHE_DIR"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(variable, "")  # restored afterwards
        monkeypatch.delenv(variable)
    policy.keep_compiled(tmp_path)
    import os

    assert os.environ["QUACK_CACHE_DIR"] == str(tmp_path / "quack") and os.environ["DG_JIT_CACHE_DIR"] == str(tmp_path / "dg")
    assert os.environ["TRITON_CACHE_DIR"] == "elsewhere"


def test_wrong_results_do_not_count(settings):
    torch = pytest.importorskip("torch")
    right = torch.randn(64)
    policy.require_same("peer", right + 0.001 * torch.randn(64), right)
    for wrong in (right + 1, right * float("nan")):
        with pytest.raises(policy.Absent, match="another result"):
            policy.require_same("peer", wrong, right)


# What rows say


def rates(ours, torch_rate=600.0, deepgemm_rate=None, absent=None):
    found = {"libmoe": ours, "torch grouped_mm": torch_rate, "dense": 700.0, "limit": 780.0}
    if deepgemm_rate:
        found[deepgemm.NAME] = deepgemm_rate
    if absent:
        found["absent"] = absent
    return found


def gemm_rows(monkeypatch, found, section=gemm):
    monkeypatch.setattr(gemm, "measured", lambda ctx, name, kind: {case: dict(found) for case in gemm.CASES})
    rows, detail = section.run(None)
    assert [(r["shape"], r["routing"]) for r in rows] == section.ROWS
    json.dumps([rows, detail])
    return {r["shape"]: r for r in rows}, detail


@pytest.mark.parametrize("ours, met", [(733.0, False), (735.0, True)])
def test_deepgemm_that_ran_decides(monkeypatch, on_h200, ours, met):
    rows, detail = gemm_rows(monkeypatch, rates(ours, deepgemm_rate=750.0))
    row = rows["mixtral down"]
    assert row["peer"] == 750 and row["peer_name"] == "DeepGEMM" and row["met"] is met and row["published"] == 796
    assert rows["olmoe up"]["published"] is None and rows["olmoe up"]["met"] is met
    mean = detail["geometric mean"]
    assert math.isclose(mean["ratio"], ours / 750) and mean["wanted"] == 1.03 and mean["met"] is False


def test_torch_may_be_the_best_that_ran(monkeypatch, on_h200):
    rows, _ = gemm_rows(monkeypatch, rates(700.0, torch_rate=710.0, deepgemm_rate=500.0))
    assert rows["mixtral up"]["peer_name"] == "torch grouped_mm" and rows["mixtral up"]["met"] is True


def test_rows_stay_open_where_deepgemm_did_not_run(monkeypatch, on_h200):
    rows, _ = gemm_rows(monkeypatch, rates(760.0, absent="DeepGEMM is not installed"))
    row = rows["mixtral up"]
    assert row["peer_name"] == "DeepGEMM, published" and row["met"] is None
    assert row["reason"] == "DeepGEMM was not run beside: DeepGEMM is not installed"
    assert rows["mixtral down"]["met"] is False  # slower than the published figure
    assert rows["olmoe up"]["peer_name"] == "torch grouped_mm" and rows["olmoe up"]["met"] is None


@pytest.mark.parametrize("skewed, met", [(0.86, True), (0.85, False)])
def test_skew_is_judged_by_what_took_turns(monkeypatch, on_h200, skewed, met):
    monkeypatch.setattr(gemm_skew, "by_turns", lambda ctx, name, case: {"uniform": 0.9, "skewed": skewed})
    rows, detail = gemm_rows(monkeypatch, rates(700.0), section=gemm_skew)
    row = rows["olmoe dgrad"]
    assert row["ours"] == skewed and row["peer"] == 0.9 and row["met"] is met
    assert detail["TFLOP/s"]["olmoe dgrad"]["of the limit, uniform"] == 0.9


def test_deepgemm_stands_beside_under_skewed_routing(monkeypatch, on_h200):
    monkeypatch.setattr(gemm_skew, "by_turns", lambda ctx, name, case: {"uniform": 0.9, "skewed": 0.9})
    rows, _ = gemm_rows(monkeypatch, rates(700.0, deepgemm_rate=650.0), section=gemm_skew)
    assert rows["qwen3-30b up"]["deepgemm_tflops"] == 650
    rows, _ = gemm_rows(monkeypatch, rates(700.0), section=gemm_skew)
    assert rows["qwen3-30b up"]["deepgemm_tflops"] is None


def test_wgrad_wants_more_than_deepgemm():
    rate = {"torch, add_": 400.0, "fp32 accumulate": 600.0}
    row = wgrad.accumulating("mixtral", dict(rate, DeepGEMM=450.0), "NVIDIA H200")
    assert row["peer_name"] == "1.3 x DeepGEMM" and math.isclose(row["peer"], 585) and row["met"] is True and row["published"] == 537
    row = wgrad.accumulating("mixtral", dict(rate, DeepGEMM=470.0), "NVIDIA H200")
    assert row["met"] is False
    row = wgrad.accumulating("mixtral", dict(rate, DeepGEMM=200.0), "NVIDIA H200")
    assert row["peer_name"] == "torch grouped_mm, add_" and row["met"] is True
    row = wgrad.accumulating("olmoe", dict(rate, absent="why"), "NVIDIA H200")
    assert row["peer_name"] == "torch grouped_mm, add_" and row["met"] is None and row["reason"].endswith("why")
    row = wgrad.accumulating("mixtral", rate, "NVIDIA H200")
    assert row["peer_name"] == "1.3 x DeepGEMM, published" and row["met"] is False


def mlp_found(ours, peer=None, absent=None):
    found = {"forward": 1.01 * ours, "train": 1.01 * ours, "forward from ids": ours, "train from ids": ours, "forward limit": 700.0,
             "train limit": 700.0, "saved bytes": 100, "peak bytes": 300_000_000}
    if peer:
        for what in ("forward", "train"):
            found |= {f"{sonic.NAME} {what}": peer, f"{sonic.NAME} {what}, sorted before": 1.1 * peer}
        found |= {"peer's saved bytes": 120, "peer's peak bytes": 400_000_000}
    if absent:
        found["absent"] = absent
    return found


def mlp_rows(monkeypatch, section, found):
    monkeypatch.setattr(mlp, "measured", lambda ctx, name, kind: dict(found))
    rows, detail = section.run(None)
    assert [(r["shape"], r["routing"]) for r in rows] == section.ROWS
    json.dumps([rows, detail])
    return rows, detail


@pytest.mark.parametrize("section", [mlp.mlp_fwd, mlp.mlp_train])
def test_sonic_that_ran_decides(monkeypatch, on_h200, section):
    rows, detail = mlp_rows(monkeypatch, section, mlp_found(650.0, peer=640.0))
    assert all(r["met"] is True and r["peer"] == 640 and r["peer_name"] == "SonicMoE 0.1.2" for r in rows)
    assert rows[0]["published"] == mlp.SONIC["mixtral"][0][section.published]
    assert math.isclose(rows[0]["ratio_sorted_before"], 1.01 * 650 / (1.1 * 640))
    means = detail["geometric mean"]
    assert set(means) == {"uniform", "skewed"} and math.isclose(means["skewed"]["ratio"], 650 / 640) and not means["skewed"]["met"]
    rows, _ = mlp_rows(monkeypatch, section, mlp_found(650.0, peer=660.0))
    assert all(r["met"] is False for r in rows)
    # Faster than SonicMoE, and still too far from the limit.
    rows, _ = mlp_rows(monkeypatch, section, mlp_found(500.0, peer=400.0))
    assert all(r["met"] is False for r in rows)


def test_rows_stay_open_where_sonic_did_not_run(monkeypatch, on_h200):
    rows, _ = mlp_rows(monkeypatch, mlp.mlp_fwd, mlp_found(650.0, absent="SonicMoE is not installed"))
    by_row = {(r["shape"], r["routing"]): r for r in rows}
    open_row, slower = by_row["mixtral", "uniform"], by_row["qwen3-30b", "uniform"]
    assert open_row["peer_name"] == "SonicMoE 0.1.2, published" and open_row["met"] is None
    assert open_row["reason"] == "SonicMoE was not run beside: SonicMoE is not installed"
    assert slower["met"] is False


def test_memory_beside_sonic(monkeypatch, on_h200):
    rows, detail = mlp_rows(monkeypatch, mlp.mlp_memory, mlp_found(650.0, peer=640.0))
    # What is wanted are its published peaks, whether it ran or not.
    assert detail["bytes"]["olmoe"]["SonicMoE's saved bytes"] == 120 and detail["bytes"]["olmoe"]["SonicMoE's peak GB"] == 0.4
    for rows in (rows, mlp_rows(monkeypatch, mlp.mlp_memory, mlp_found(650.0))[0]):
        assert rows[0]["peer"] == 1.14 and rows[0]["peer_name"] == "SonicMoE 0.1.2, published"
        assert all(r["met"] is True and math.isclose(r["ratio"], 0.3 / r["peer"]) for r in rows)


def test_decode_compares_with_the_fastest_that_sorts():
    us = {"plan": 4.0, "SGLang, aligned before": 50.0, "SGLang, aligned by torch": 130.0, "SGLang, aligned by SGLang's CUDA": 60.0}
    assert decode.best_peer(us, 45) == (60.0, "SGLang, aligned by SGLang's CUDA")
    assert decode.best_peer({"plan": 4.0}, 45) == (45, "SGLang Triton, published")
    assert decode.best_peer({"plan": 4.0}, None) == (None, None)


def test_a_section_that_fails_keeps_its_rows(monkeypatch, tmp_path, capsys):
    """Rows of every key are written on a machine that can run none of them."""
    from libmoe.bench import __main__ as main

    def no_gpu(*_):
        raise RuntimeError("no GPU here")

    monkeypatch.setattr(libmoe, "Context", no_gpu)
    monkeypatch.setattr("sys.argv", ["bench", "--out", str(tmp_path), "--peers", "DeepGEMM"])
    monkeypatch.setattr(policy, "settings", policy.Settings())
    assert main.main() == 0
    rows = json.loads((tmp_path / "targets.json").read_text())
    assert {(r["key"], r["shape"], r["routing"]) for r in rows} == {(s.KEY, *r) for s in targets.SECTIONS for r in s.ROWS}
    assert all(r["met"] is None and "no GPU here" in r["reason"] for r in rows)
    assert policy.settings.names == {"DeepGEMM"}
    capsys.readouterr()


def test_geometric_mean():
    assert record.geometric_mean([2.0, 0.5], 1.0) == {"ratio": 1.0, "wanted": 1.0, "met": True}


# The layouts that peers are given


def test_deepgemm_groups_begin_at_its_alignment():
    torch = pytest.importorskip("torch")
    counts = torch.tensor([3, 0, 4, 1])
    sizes, places, layout = deepgemm.padded(counts, 4)
    assert sizes.tolist() == [4, 0, 4, 4] and places.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert layout.tolist() == [0, 0, 0, -1, 2, 2, 2, 2, 3, -1, -1, -1]


class Library:
    """DeepGEMM's functions on the CPU, as its documentation defines them."""

    @staticmethod
    def get_mk_alignment_for_contiguous_layout():
        return 8

    @staticmethod
    def m_grouped_bf16_gemm_nt_contiguous(a, b, c, layout):
        for row, group in enumerate(layout.tolist()):
            c[row] = b[group] @ a[row] if group >= 0 else float("nan")

    @staticmethod
    def m_grouped_bf16_gemm_nn_contiguous(a, b, c, layout):
        Library.m_grouped_bf16_gemm_nt_contiguous(a, b.transpose(1, 2), c, layout)

    @staticmethod
    def k_grouped_bf16_gemm_tn_contiguous(a, b, d, ks, on_device, c):
        assert ks == on_device.tolist() and c is d
        begin = 0
        for group, rows in enumerate(ks):
            d[group] += a[begin:begin + rows].T @ b[begin:begin + rows]
            begin += rows


@pytest.fixture
def fake_deepgemm(monkeypatch):
    monkeypatch.setattr(deepgemm, "library", lambda: Library)


@pytest.mark.parametrize("across", [False, True])
def test_deepgemm_products(fake_deepgemm, across):
    torch = pytest.importorskip("torch")
    counts = torch.tensor([5, 0, 9])
    a, b = torch.randn(14, 6), torch.randn(3, *((6, 4) if across else (4, 6)))
    groups = torch.repeat_interleave(torch.arange(3), counts)
    expected = torch.stack([row @ (b[g] if across else b[g].T) for row, g in zip(a, groups)])
    assert callable(deepgemm.grouped(a, b, counts, across, expected))
    with pytest.raises(policy.Absent):
        deepgemm.grouped(a, b, counts, across, expected.flip(0))


def test_deepgemm_wgrad(fake_deepgemm):
    torch = pytest.importorskip("torch")
    counts = torch.tensor([5, 0, 9])
    dy, x = torch.randn(14, 4), torch.randn(14, 6)
    expected = torch.stack([d.T @ r for d, r in zip(dy.split(counts.tolist()), x.split(counts.tolist()))])
    assert callable(deepgemm.wgrad(dy, x, counts, expected))


@pytest.mark.parametrize("T, E, K, block", [(1, 8, 2, 16), (8, 128, 8, 16), (64, 128, 8, 64), (128, 8, 2, 32), (3, 4, 4, 128)])
def test_sglang_alignment(T, E, K, block):
    torch = pytest.importorskip("torch")
    ids = torch.rand(T, E).topk(K).indices.int()
    order, blocks, total = sglang.align_by_torch(ids, block, E)
    flat, total = ids.flatten(), int(total)
    found = [(slot, place) for place, slot in enumerate(order.tolist()) if slot < T * K]
    assert sorted(slot for slot, _ in found) == list(range(T * K))
    assert all(place < total and flat[slot] == blocks[place // block] for slot, place in found)
    assert total == sum(-(-int((flat == e).sum()) // block) * block for e in range(E)) <= order.numel()


def test_sglang_tables(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    monkeypatch.setenv("PEER_SRC", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert sglang.config(1, 8, 3584)[1] == "default"
    folder = tmp_path / "sglang_moe"
    folder.mkdir()
    for width in (1792, 14336):
        table = {"triton_version": "3", "1": {"BLOCK_SIZE_M": width}, "64": {"BLOCK_SIZE_M": 2 * width}}
        (folder / f"E=8,N={width},device_name=NVIDIA_H200.json").write_text(json.dumps(table))
    assert sglang.config(8, 8, 3584) == ({"BLOCK_SIZE_M": 1792}, "table of N=1792")
    assert sglang.config(128, 8, 14336) == ({"BLOCK_SIZE_M": 2 * 14336}, "table of N=14336")


def test_sglang_source_is_imported_with_stand_ins(monkeypatch, tmp_path):
    import sys

    monkeypatch.setenv("PEER_SRC", str(tmp_path))
    sglang.source.cache_clear()
    with pytest.raises(policy.Absent, match="PEER_SRC"):
        sglang.source(sglang.KERNELS, True)
    (tmp_path / "sglang_moe").mkdir()
    (tmp_path / "sglang_moe" / sglang.KERNELS).write_text(
        "from sglang.srt.utils import is_cuda, is_hip\nfrom sglang.srt.environ import envs\n"
        "from sglang.kernels.jit.utils import is_arch_support_pdl\n"
        "answers = is_cuda(), is_hip(), is_arch_support_pdl(), envs.SOME_FLAG.get()\n")
    assert sglang.source(sglang.KERNELS, True).answers == (True, False, True, False)
    assert sglang.source(sglang.KERNELS, False).answers == (True, False, False, False)
    assert not [name for name in sys.modules if name.split(".")[0] == "sglang"]
    sglang.source.cache_clear()
