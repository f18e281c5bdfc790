#!/usr/bin/env python3
"""The small set that runs under compute-sanitizer: every operation once or more on plain driver allocations, no torch.

Outputs are checked against the CPU backend, so that a run that did nothing cannot pass for a clean one.
"""

from __future__ import annotations

import numpy as np
from driver_arrays import DeviceArray, Gpu

import libmoe

try:
    import ml_dtypes

    BF16 = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BF16 = np.dtype(np.float16)
F32, I32, I64 = np.dtype(np.float32), np.dtype(np.int32), np.dtype(np.int64)


class Pair:
    """Runs a call on the GPU and on the CPU with the same inputs and compares the outputs."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.gpu, self.cpu = libmoe.Context("cuda:0"), libmoe.Context("cpu")
        self.device = Gpu()
        self.calls = 0

    def randn(self, *shape, dtype=F32, scale=1.0):
        return (self.rng.standard_normal(shape) * scale).astype(dtype)

    def workspace(self, op, desc):
        """The expert MLP's is NaN: initcheck does not see what the copy engine stores there, and takes all of it for never written."""
        size = max(1, self.gpu.query(op + "_workspace_size", desc))
        return DeviceArray.of(np.full(size, 0xFF, np.uint8)) if op.startswith("expert_mlp") else DeviceArray(size, np.uint8)

    def run(self, op, desc, inputs, outputs, modes=None, valid=None):
        """inputs: arrays; outputs: arrays to be written (their present values matter for ADD). Returns the GPU's outputs."""
        modes = modes or {}
        host = {name: array.copy() for name, array in outputs.items()}
        self.cpu.run(op, desc, {**inputs, **host, **modes})
        there = {name: DeviceArray.of(array) for name, array in {**inputs, **outputs}.items()}
        workspace = self.workspace(op, desc)
        self.gpu.run(op, desc, {**there, **modes}, workspace=workspace, stream=0)
        self.device.synchronize()
        found = {name: there[name].numpy() for name in outputs}
        # Between its stages the expert MLP rounds to 16 bits, and the backends not at the same places.
        rounds = op.startswith("expert_mlp") and any(array.dtype.itemsize == 2 for array in inputs.values())
        for name, array in found.items():
            rows = slice(None) if valid is None or name not in valid else slice(valid[name])
            ours, theirs = array[rows].astype(np.float64), host[name][rows].astype(np.float64)
            scale = max(1e-6, np.linalg.norm(theirs))
            off = np.linalg.norm(ours - theirs) / scale
            assert off < (2e-2 if array.dtype.itemsize == 2 else 1e-2 if rounds else 1e-3), (op, name, off)
        self.calls += 1
        return found


def layer(pair, T, d, f, E, K, dtype, drop=0.0):
    code = {F32: libmoe.DTYPE_FP32, np.dtype(np.float16): libmoe.DTYPE_FP16}.get(dtype, libmoe.DTYPE_BF16)
    logits = pair.randn(T, E)
    route = dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, top_k=K, renormalize=libmoe.ON,
                 aux_loss=libmoe.AUX_LOSS_MEGATRON, aux_loss_coeff=0.01, z_loss=libmoe.ON, z_loss_coeff=0.001)
    out = pair.run("router_fwd", route, dict(logits=logits), dict(
        ids=np.zeros((T, K), I32), weights=np.zeros((T, K), F32), tokens_per_expert=np.zeros(E, I64),
        aux_counts=np.zeros((1, E), I64), aux_loss=np.zeros(1, F32), z_loss=np.zeros(1, F32)))
    ids, weights = out["ids"], out["weights"]
    pair.run("router_bwd", route, dict(logits=logits, ids=ids, dweights=pair.randn(T, K), aux_counts=out["aux_counts"]),
             dict(dlogits=np.zeros((T, E), F32)))
    ids[pair.rng.random((T, K)) < drop] = -1
    plan = dict(num_tokens=T, num_experts=E, top_k=K)
    R = pair.cpu.query("dispatch_rows_max", plan)
    rows = int((ids >= 0).sum())
    maps = pair.run("dispatch_plan", plan, dict(ids=ids), dict(
        group_offsets=np.zeros(E + 1, I64), group_sizes=np.zeros(E, I64), row_of_slot=np.zeros(T * K, I32),
        slot_of_row=np.zeros(R, I32), token_of_row=np.zeros(R, I32)), valid=dict(slot_of_row=rows, token_of_row=rows))
    offsets = maps["group_offsets"]
    x, dy = pair.randn(T, d, dtype=dtype), pair.randn(T, d, dtype=dtype)
    w1, w2 = pair.randn(E, 2 * f, d, dtype=dtype, scale=d**-0.5), pair.randn(E, d, f, dtype=dtype, scale=f**-0.5)
    part = dict(rows=rows, drows=rows, c=rows, da=rows, h=rows, dh=rows)
    permute = dict(dtype=code, num_tokens=T, hidden_size=d, top_k=K, rows_max=R, num_groups=E)
    moved = pair.run("dispatch_fwd", permute, dict(
        x=x, token_of_row=maps["token_of_row"], slot_of_row=maps["slot_of_row"], group_offsets=offsets, weights=weights),
        dict(rows=np.zeros((R, d), dtype), row_weights=np.zeros(R, F32)), valid=dict(rows=rows, row_weights=rows))
    pair.run("dispatch_bwd", permute, dict(drows=moved["rows"], row_of_slot=maps["row_of_slot"]), dict(dx=np.zeros((T, d), dtype)))
    pair.run("combine_fwd", permute, dict(rows=moved["rows"], row_of_slot=maps["row_of_slot"], weights=weights),
             dict(y=np.zeros((T, d), dtype)))
    pair.run("combine_bwd", permute, dict(
        dy=dy, rows=moved["rows"], weights=weights, token_of_row=maps["token_of_row"], slot_of_row=maps["slot_of_row"],
        row_of_slot=maps["row_of_slot"], group_offsets=offsets),
        dict(drows=np.zeros((R, d), dtype), dweights=np.zeros((T, K), F32)), valid=part)
    gemm = dict(dtype=code, rows_max=R, n=2 * f, k=d, num_groups=E)
    pair.run("grouped_gemm_fwd", gemm, dict(a=moved["rows"], b=w1, group_offsets=offsets),
             dict(c=np.zeros((R, 2 * f), dtype)), valid=part)
    pair.run("grouped_gemm_bwd", gemm, dict(
        dc=pair.randn(R, 2 * f, dtype=dtype), a=moved["rows"], b=w1, group_offsets=offsets),
        dict(da=np.zeros((R, d), dtype), db=np.zeros((E, 2 * f, d), F32), dbias=np.zeros((E, 2 * f), F32)), valid=part)
    h = pair.randn(R, 2 * f, dtype=dtype)
    act = dict(dtype=code, rows_max=R, ffn_size=f)
    pair.run("activation_fwd", act, dict(h=h), dict(y=np.zeros((R, f), dtype)))
    pair.run("activation_bwd", act, dict(h=h, dy=pair.randn(R, f, dtype=dtype), row_weights=pair.randn(R)),
             dict(dh=np.zeros((R, 2 * f), dtype), drow_weights=np.zeros(R, F32), weighted_act=np.zeros((R, f), dtype)))
    mlp = dict(dtype=code, num_tokens=T, rows_max=R, top_k=K, num_experts=E, hidden_size=d, ffn_size=f)
    common = dict(x=x, w1=w1, w2=w2, weights=weights, **{
        name: maps[name] for name in ("group_offsets", "token_of_row", "slot_of_row", "row_of_slot")})
    saved = pair.run("expert_mlp_fwd", mlp, common, dict(y=np.zeros((T, d), dtype), h=np.zeros((R, 2 * f), dtype)), valid=part)
    pair.run("expert_mlp_bwd", mlp, dict(dy=dy, h=saved["h"], **common), dict(
        dx=np.zeros((T, d), dtype), dw1=np.zeros((E, 2 * f, d), F32), dw2=np.zeros((E, d, f), F32),
        db1=np.zeros((E, 2 * f), F32), db2=np.zeros((E, d), F32),
        dweights=np.zeros((T, K), F32), dh=np.zeros((R, 2 * f), dtype)), valid=part)


def few_tokens(pair, T, d, f, E, K, dtype):
    """Inference of few tokens: both layouts of weights, gate and up in three orders."""
    code = libmoe.DTYPE_FP16 if dtype == np.dtype(np.float16) else libmoe.DTYPE_BF16
    plan = dict(num_tokens=T, num_experts=E, top_k=K)
    R = pair.cpu.query("dispatch_rows_max", plan)
    maps = pair.run("dispatch_plan", plan, dict(ids=pair.rng.random((T, E)).argsort(-1)[:, :K].astype(I32)), dict(
        group_offsets=np.zeros(E + 1, I64), row_of_slot=np.zeros(T * K, I32), slot_of_row=np.zeros(R, I32),
        token_of_row=np.zeros(R, I32)))
    x, weights = pair.randn(T, d, dtype=dtype), pair.randn(T, K)
    w1, w2 = pair.randn(E, 2 * f, d, dtype=dtype, scale=d**-0.5), pair.randn(E, d, f, dtype=dtype, scale=f**-0.5)
    for order in (libmoe.GATE_FIRST, libmoe.UP_FIRST, libmoe.GATE_INTERLEAVED):
        for layout in (libmoe.WEIGHT_OUT_IN, libmoe.WEIGHT_IN_OUT):
            across = layout == libmoe.WEIGHT_IN_OUT
            turned = [np.ascontiguousarray(w.swapaxes(1, 2)) if across else w for w in (w1, w2)]
            pair.run("expert_mlp_fwd", dict(
                dtype=code, num_tokens=T, rows_max=R, top_k=K, num_experts=E, hidden_size=d, ffn_size=f, gate_order=order,
                w1_layout=layout, w2_layout=layout), dict(x=x, w1=turned[0], w2=turned[1], weights=weights, **maps),
                dict(y=np.zeros((T, d), dtype)))


def routers(pair, T, d, E, K, dtype):
    """What surrounds the router: its GEMM, expert choice, the bias, capacity, Sinkhorn."""
    code = {F32: libmoe.DTYPE_FP32, np.dtype(np.float16): libmoe.DTYPE_FP16}.get(dtype, libmoe.DTYPE_BF16)
    x, weight = pair.randn(T, d, dtype=dtype), pair.randn(E, d, dtype=dtype, scale=d**-0.5)
    gate = dict(dtype=code, logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, hidden_size=d, num_experts=E, jitter=libmoe.ON,
                jitter_eps=0.1)
    random = dict(random=(5, 6))
    logits = pair.run("router_logits_fwd", gate, dict(x=x, weight=weight, bias=pair.randn(E)),
                      dict(logits=np.zeros((T, E), F32), jittered_x=np.zeros((T, d), dtype)), random)["logits"]
    pair.run("router_logits_bwd", gate, dict(dlogits=pair.randn(T, E), x=x, weight=weight),
             dict(dx=np.zeros((T, d), dtype), dweight=np.zeros((E, d), F32), dbias=np.zeros(E, F32)), random)
    # Logits far apart, so that no choice hangs on the last bit of a score.
    logits = 4 * logits
    few = dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E)
    C = T * K // E
    chosen = pair.run("expert_choice_fwd", dict(capacity=C, **few), dict(logits=logits), dict(
        token_ids=np.zeros((E, C), I32), weights=np.zeros((E, C), F32), weights_dense=np.zeros((T, E), F32),
        byte_mask=np.zeros((T, E), np.uint8), bit_mask=np.zeros((T, -(-E // 32)), np.uint32)))
    pair.run("expert_choice_bwd", dict(capacity=C, **few), dict(
        logits=logits, token_ids=chosen["token_ids"], dweights=pair.randn(E, C)), dict(dlogits=np.zeros((T, E), F32)))
    pair.run("expert_choice_bwd", dict(capacity=C, **few), dict(
        logits=logits, byte_mask=chosen["byte_mask"], dweights_dense=pair.randn(T, E)), dict(dlogits=np.zeros((T, E), F32)))
    pair.run("router_bias_update", dict(rule=libmoe.BIAS_UPDATE_SIGN, num_experts=E),
             dict(tokens_per_expert=pair.rng.integers(0, 9, E)), dict(bias=pair.randn(E)))
    pair.run("router_bias_update", dict(rule=libmoe.BIAS_UPDATE_QUANTILE, num_experts=E, num_tokens=T, top_k=K),
             dict(scores=pair.randn(T, E)), dict(bias=pair.randn(E)))
    ids, weights = pair.rng.random((T, E)).argsort(1)[:, :K].astype(I32), pair.rng.random((T, K)).astype(F32)
    for policy in range(libmoe.DROP_BY_CHOICE + 1):
        drop = dict(num_tokens=T, num_experts=E, top_k=K, capacity=C, policy=policy, renormalize=libmoe.DROP_RENORMALIZE_AFTER)
        kept = pair.run("capacity_fwd", drop, dict(ids=ids, weights=weights), dict(
            kept_ids=np.zeros((T, K), I32), kept_weights=np.zeros((T, K), F32), tokens_per_expert=np.zeros(E, I64),
            dropped_per_expert=np.zeros(E, I64)), random)
        pair.run("capacity_bwd", drop, dict(weights=weights, kept_ids=kept["kept_ids"], dkept_weights=pair.randn(T, K)),
                 dict(dweights=np.zeros((T, K), F32)))
    pair.run("sinkhorn", dict(preset=libmoe.SINKHORN_MEGATRON, **few), dict(logits=logits / 4),
             dict(probs=np.zeros((T, E), F32), log_d0=np.zeros(T, F32), log_d1=np.zeros(E, F32)))


def main():
    seed = int(np.random.SeedSequence().entropy % 2**31)
    print(f"seed {seed}", flush=True)
    pair = Pair(seed)
    layer(pair, T=97, d=64, f=40, E=5, K=2, dtype=BF16)
    layer(pair, T=150, d=72, f=36, E=9, K=3, dtype=BF16, drop=0.3)
    layer(pair, T=33, d=20, f=12, E=4, K=2, dtype=F32)
    few_tokens(pair, T=9, d=136, f=72, E=12, K=3, dtype=BF16)
    few_tokens(pair, T=70, d=64, f=40, E=8, K=2, dtype=np.dtype(np.float16))
    routers(pair, T=211, d=136, E=10, K=3, dtype=BF16)
    routers(pair, T=150, d=44, E=70, K=4, dtype=F32)
    print(f"sanitized: {pair.calls} calls agree with the CPU backend")


if __name__ == "__main__":
    main()
