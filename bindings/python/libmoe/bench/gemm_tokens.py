"""Grouped GEMM over tokens per expert, and at widths that fit no tile, beside torch's grouped_mm and a dense GEMM."""

from __future__ import annotations

from . import gemm, method, record

KEY = "gemm_tokens"
ODD, EVEN = 2880, 3072
ROWS = [(f"{ODD} x {ODD}", "uniform")]
NEEDS = "gpu"
WANTED = f">= 0.70 x the rate at {EVEN} x {EVEN}"
# qwen3-30b's fc1, of 16 experts.
N, K, EXPERTS = 1536, 2048, 16
TOKENS = [1 << i for i in range(14)]


def run(ctx) -> tuple[list[dict], dict]:
    import torch

    def rates(experts, tokens, n, k):
        found = gemm.rates(ctx, torch.full((experts,), tokens, device="cuda"), n, k)
        torch.cuda.empty_cache()
        return found

    state = method.gpu_state()
    by_tokens = {tokens: rates(EXPERTS, tokens, N, K) for tokens in TOKENS}
    odd, even = (rates(32, 1024, width, width)["libmoe"] for width in (ODD, EVEN))
    row = record.row(KEY, ROWS[0][0], "uniform", "TFLOP/s", WANTED, ours=odd, peer=even, peer_name=f"libmoe at {EVEN}",
                     ratio=odd / even, met=odd >= 0.7 * even, device=state.get("device"))
    return [row], {**state, "n": N, "k": K, "experts": EXPERTS, "TFLOP/s by tokens per expert": by_tokens}
