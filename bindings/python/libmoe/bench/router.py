"""Target `router`: top-k with its losses, in one launch."""

from __future__ import annotations

import libmoe

from . import method, peers, record

KEY = "router"
SIZES = [(T, E, K) for T in (4096, 65536) for E, K in ((8, 2), (64, 8), (128, 8))]
ROWS = [(f"{T}x{E} k{K}", what) for T, E, K in SIZES for what in ("forward", "backward")]
NEEDS = "gpu"
WANTED = "<= 1.5 x (bytes / 4.3 TB/s) + 3 us"
BYTE_RATE = 4.3e12


def run(ctx) -> tuple[list[dict], dict]:
    import torch

    result, detail = [], {**method.gpu_state(), "cases": {}}
    mcore = peers.megatron()
    for T, E, K in SIZES:
        sets = method.rotations(T * E * 4)
        desc = dict(
            logits_dtype=libmoe.DTYPE_BF16, num_tokens=T, num_experts=E, top_k=K, aux_loss=libmoe.AUX_LOSS_MEGATRON,
            aux_loss_coeff=1e-2, z_loss=libmoe.ON, z_loss_coeff=1e-3,
        )
        forwards, backwards, torches, logits = [], [], [], []
        for _ in range(sets):
            x = torch.randn(T, E, device="cuda", dtype=torch.bfloat16)
            logits.append(x)
            ids = torch.empty(T, K, device="cuda", dtype=torch.int32)
            weights = torch.empty(T, K, device="cuda", dtype=torch.float32)
            counts = torch.empty(1, E, device="cuda", dtype=torch.int64)
            per_expert = torch.empty(E, device="cuda", dtype=torch.int64)
            losses = torch.empty(2, device="cuda")
            forwards.append(
                ctx.prepare("router_fwd", desc, dict(
                    logits=x, ids=ids, weights=weights, aux_counts=counts, tokens_per_expert=per_expert,
                    aux_loss=losses[:1], z_loss=losses[1:]))
            )
            backwards.append(
                ctx.prepare("router_bwd", desc, dict(
                    logits=x, ids=ids, dweights=torch.randn(T, K, device="cuda"), dlogits=torch.empty_like(x),
                    aux_counts=counts))
            )
            torches.append(lambda x=x: x.float().softmax(-1).topk(K, -1))
        timings = method.time_gpu({"forward": forwards, "backward": backwards, "torch": torches})
        if mcore:
            timings["megatron"] = method.time_eager(lambda: mcore.topk_routing_with_score_function(logits[0], K))
        nbytes = {"forward": T * E * 2 + T * K * 8, "backward": 2 * T * E * 2 + T * K * 8}
        case = f"{T}x{E} k{K}"
        detail["cases"][case] = {name: t.median * 1e6 for name, t in timings.items()}
        for what, count in nbytes.items():
            limit = 1.5 * count / BYTE_RATE * 1e6 + 3
            ours = timings[what].median * 1e6
            result.append(
                record.row(KEY, case, what, "us", WANTED, ours=ours, peer=limit, peer_name="limit", ratio=ours / limit,
                           met=ours <= limit, device=detail.get("device"))
            )
    return result, detail
