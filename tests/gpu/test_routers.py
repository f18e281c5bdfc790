"""The router's GEMM, group limits, expert choice, capacity and the bias' update at sizes that only a GPU does quickly:
beside float64 torch, in a CUDA graph, repeated to the bit, and on ids of random bits."""

import libmoe
import pytest
import reference
import torch
from layer import draw_ids, poisoned

CODES = {torch.bfloat16: libmoe.DTYPE_BF16, torch.float16: libmoe.DTYPE_FP16, torch.float32: libmoe.DTYPE_FP32}


@pytest.mark.parametrize("dtype", CODES, ids=str)
@pytest.mark.parametrize("T, d, E", [(16384, 2048, 8), (5000, 1032, 64), (3001, 7168, 128), (2000, 520, 256), (700, 2880, 300)])
def test_logits(gpu, rng, dtype, T, d, E):
    x, weight = torch.randn(T, d, device="cuda").to(dtype), (torch.randn(E, d, device="cuda") * d**-0.5).to(dtype)
    dlogits = torch.randn(T, E, device="cuda")
    desc = dict(dtype=CODES[dtype], logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, hidden_size=d, num_experts=E)
    found = []
    for _ in range(2):
        logits, dx = poisoned(T, E, dtype=torch.float32), poisoned(T, d, dtype=dtype)
        dweight, dbias = poisoned(E, d, dtype=torch.float32), poisoned(E, dtype=torch.float32)
        gpu.run("router_logits_fwd", desc, dict(x=x, weight=weight, logits=logits))
        gpu.run("router_logits_bwd", desc, dict(dlogits=dlogits, x=x, weight=weight, dx=dx, dweight=dweight, dbias=dbias))
        found.append((logits, dx, dweight, dbias))
    assert all(torch.equal(a, b) for a, b in zip(*found))
    logits, dx, dweight, dbias = found[0]
    X, W, G = x.double(), weight.double(), dlogits.double()
    assert reference.error(logits, X @ W.T) < 1e-5
    assert reference.error(dx, G @ W) < reference.TOLERANCE[dtype]
    # bf16 tensor cores take fp32 gradients as two numbers of 8 bits each.
    assert reference.error(dweight, G.T @ X) < 2e-5
    assert reference.error(dbias, G.sum(0)) < 1e-5


@pytest.mark.parametrize("E, G, g, K", [(256, 8, 4, 8), (160, 8, 3, 6), (32, 8, 3, 6)])
def test_group_limits(gpu, rng, E, G, g, K):
    """DeepSeek-V3's router: scores by sigmoid, a bias, the best groups by their two best."""
    T = 20000
    logits, bias = torch.randn(T, E, device="cuda"), torch.randn(E, device="cuda") * 0.1
    ids, weights = poisoned(T, K, dtype=torch.int64), poisoned(T, K, dtype=torch.float32)
    dense, mask = poisoned(T, E, dtype=torch.bfloat16), torch.full((T, E), 77, device="cuda", dtype=torch.uint8)
    gpu.run("router_fwd", dict(
        logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, top_k=K, score_function=libmoe.SCORE_SIGMOID,
        renormalize=libmoe.ON, scaling_factor=2.5, num_groups=G, top_groups=g, group_score=libmoe.GROUP_SCORE_TOP2_SUM),
        dict(logits=logits, selection_bias=bias, ids=ids, weights=weights, weights_dense=dense, byte_mask=mask))
    scores = logits.double().sigmoid()
    biased = scores + bias.double()
    groups = biased.view(T, G, -1).topk(2, -1).values.sum(-1).topk(g, -1).indices
    allowed = torch.zeros(T, G, device="cuda", dtype=torch.bool).scatter_(1, groups, True).repeat_interleave(E // G, 1)
    chosen = biased.masked_fill(~allowed, -torch.inf).topk(K, -1).indices
    # Where float64 and float32 see another order, which is rare, the choices may differ.
    assert (chosen.sort(-1).values == ids.sort(-1).values).all(-1).float().mean() > 0.999
    wanted = scores.gather(1, ids)
    wanted = 2.5 * wanted / wanted.sum(-1, keepdim=True)
    assert reference.error(weights, wanted) < 1e-5
    assert torch.equal(mask, torch.zeros_like(mask).scatter_(1, ids, 1))
    assert torch.equal(dense, torch.zeros_like(dense).scatter_(1, ids, weights.bfloat16()))


@pytest.mark.parametrize("T, E, C", [(65536, 64, 2048), (20000, 8, 5000), (4096, 256, 100)])
def test_expert_choice(gpu, rng, T, E, C):
    logits = torch.randn(T, E, device="cuda")
    ids, weights = poisoned(E, C, dtype=torch.int64), poisoned(E, C, dtype=torch.float32)
    gpu.run("expert_choice_fwd", dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, capacity=C),
            dict(logits=logits, token_ids=ids, weights=weights))
    scores = logits.double().softmax(-1).T
    best = scores.topk(C, -1)
    assert (ids.diff(dim=-1) > 0).all()
    assert reference.error(weights, scores.gather(1, ids)) < 1e-5
    # All that were taken are as good as the least of the best.
    assert (weights.double().amin(-1) >= best.values[:, -1] * (1 - 1e-5)).all()


def test_capacity_in_a_graph(gpu, rng):
    T, E, K, C = 20000, 16, 4, 3000
    weights, ids = torch.rand(T, K, device="cuda"), torch.empty(T, K, device="cuda", dtype=torch.int32)
    kept, kept_weights = torch.empty_like(ids), torch.empty_like(weights)
    counts, dropped = (torch.empty(E, device="cuda", dtype=torch.int64) for _ in range(2))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call = gpu.prepare("capacity_fwd", dict(num_tokens=T, num_experts=E, top_k=K, capacity=C), dict(
            ids=ids, weights=weights, kept_ids=kept, kept_weights=kept_weights, tokens_per_expert=counts, dropped_per_expert=dropped))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            call()
    for kind in ("even", "skewed", "one", "dropped"):
        ids.copy_(draw_ids(rng, T, E, K, kind))
        weights.uniform_()
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        for e in range(E):
            own = ids == e
            assert counts[e] == min(C, own.sum()) and dropped[e] == max(own.sum() - C, 0), (kind, e)
            stays = kept == e
            assert (own | ~stays).all() and stays.sum() == counts[e], (kind, e)
            if dropped[e] > 0:
                assert weights[stays].min() >= weights[own & ~stays].max(), (kind, e)
        assert torch.equal(kept_weights, torch.where(kept >= 0, weights, 0)), kind


def every_routing_call(device, T=3000, d=256, E=64, K=4, C=150):
    """(inputs, outputs, calls): each routing function once or more, on what the ones before it gave."""
    def new(*size, dtype=torch.float32):
        return torch.zeros(*size, device=device, dtype=dtype)

    inputs = dict(x=new(T, d, dtype=torch.bfloat16), weight=new(E, d, dtype=torch.bfloat16), slopes=new(T, E), dweights=new(T, K),
                  scores=new(T, E), dchosen=new(E, C), seed=new(1, dtype=torch.int64))
    outputs, calls = {}, []

    def call(function, desc, given, random=False, **out):
        """`out`: names of outputs to their tensors; those of an earlier call are its state."""
        args = {**given, **out}
        if random:
            args["random"] = dict(seed=inputs["seed"], offset=0)
        outputs.update({f"{len(calls)} {function} {name}": tensor for name, tensor in out.items()})
        calls.append((function, desc, args))
        return out

    gate = dict(dtype="bf16", logits_dtype="fp32", num_tokens=T, hidden_size=d, num_experts=E, jitter=libmoe.ON, jitter_eps=0.1)
    logits = call("router_logits_fwd", gate, dict(x=inputs["x"], weight=inputs["weight"]), random=True, logits=new(T, E))["logits"]
    call("router_logits_bwd", gate, dict(x=inputs["x"], weight=inputs["weight"], dlogits=inputs["slopes"]), random=True,
         dx=new(T, d, dtype=torch.bfloat16), dweight=new(E, d), dbias=new(E))
    sizes = dict(logits_dtype="fp32", num_tokens=T, num_experts=E)
    losses = dict(aux_loss=libmoe.AUX_LOSS_MEGATRON, aux_loss_coeff=0.1, z_loss=libmoe.ON, z_loss_coeff=0.1)
    log_d1 = call("sinkhorn", sizes, dict(logits=logits), log_d1=new(E), probs=new(T, E), iterations=new(1, dtype=torch.int32))["log_d1"]
    state = dict(log_d1=new(E), column_mass=new(E), done=new(1, dtype=torch.int32))
    for step in range(4):
        call("sinkhorn_step", dict(sizes, max_iterations=3), dict(logits=logits, round=step), **state)
    by_sequence = dict(aux_scope=libmoe.AUX_SCOPE_SEQUENCE, num_sequences=10, score_function=libmoe.SCORE_SIGMOID, num_groups=8,
                       top_groups=4, group_score=libmoe.GROUP_SCORE_TOP2_SUM)
    for options, more in ((dict(renormalize=libmoe.ON), {}), (by_sequence, dict(selection_bias=log_d1))):
        desc = dict(sizes, top_k=K, **losses, **options)
        counts = new(options.get("num_sequences", 1), E, dtype=torch.int64)
        routed = call("router_fwd", desc, dict(logits=logits, **more), ids=new(T, K, dtype=torch.int64), weights=new(T, K),
                      tokens_per_expert=new(E, dtype=torch.int64), aux_counts=counts, aux_loss=new(1), z_loss=new(1))
        call("router_bwd", desc, dict(logits=logits, ids=routed["ids"], dweights=inputs["dweights"], aux_counts=counts), dlogits=new(T, E))
        desc = dict(sizes, top_k=K, **losses)
        counts = call("router_loss_fwd", desc, dict(logits=logits, ids=routed["ids"]), aux_counts=new(1, E, dtype=torch.int64),
                      aux_loss=new(1), z_loss=new(1))["aux_counts"]
        call("router_loss_bwd", desc, dict(logits=logits, aux_counts=counts), dlogits=new(T, E))
    drop = dict(num_tokens=T, num_experts=E, top_k=K, capacity=C, policy=libmoe.DROP_RANDOM, renormalize=libmoe.DROP_RENORMALIZE_AFTER)
    kept = call("capacity_fwd", drop, dict(ids=routed["ids"], weights=routed["weights"]), random=True,
                kept_ids=new(T, K, dtype=torch.int64), kept_weights=new(T, K), dropped_per_expert=new(E, dtype=torch.int64))
    call("capacity_bwd", drop, dict(weights=routed["weights"], kept_ids=kept["kept_ids"], dkept_weights=inputs["dweights"]),
         dweights=new(T, K))
    bias = new(E)
    call("router_bias_update", dict(num_experts=E), dict(tokens_per_expert=routed["tokens_per_expert"]), bias=bias)
    call("router_bias_update", dict(rule=libmoe.BIAS_UPDATE_QUANTILE, num_experts=E, num_tokens=T, top_k=K),
         dict(scores=inputs["scores"]), bias=bias)
    chosen = call("expert_choice_fwd", dict(sizes, capacity=C), dict(logits=logits), token_ids=new(E, C, dtype=torch.int32),
                  weights=new(E, C))["token_ids"]
    call("expert_choice_bwd", dict(sizes, capacity=C), dict(logits=logits, token_ids=chosen, dweights=inputs["dchosen"]), dlogits=new(T, E))
    return inputs, outputs, calls


def test_every_routing_function_in_a_graph(gpu, rng):
    """A replay gives to the bit what the calls give, for other inputs and another seed."""
    inputs, outputs, calls = every_routing_call("cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        prepared = [gpu.prepare(*call) for call in calls]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in prepared:
                call()

    def run(work):
        for tensor in outputs.values():
            tensor.zero_()
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            work()
        torch.cuda.synchronize()
        return {name: tensor.clone() for name, tensor in outputs.items()}

    for replay in range(3):
        for name, tensor in inputs.items():
            tensor.random_() if name == "seed" else tensor.normal_()
        inputs["weight"] *= 0.1
        wanted = run(lambda: [call() for call in prepared])
        found = run(graph.replay)
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), (replay, name)
            assert tensor.any() or name.endswith(("done", "column_mass")), (replay, name)


def test_bias_update(gpu, rng):
    E, T, K = 128, 30000, 8
    counts, bias = torch.randint(0, 1 << 50, (E,), device="cuda"), torch.zeros(E, device="cuda")
    gpu.run("router_bias_update", dict(rule=libmoe.BIAS_UPDATE_SIGN, num_experts=E, rate=0.5), dict(bias=bias, tokens_per_expert=counts))
    mean = sum(counts.tolist()) / E
    assert torch.equal(bias, 0.5 * torch.sign(mean - counts.double()).float())
    scores, bias = torch.rand(T, E, device="cuda") + torch.rand(E, device="cuda"), torch.zeros(E, device="cuda")
    for _ in range(8):
        gpu.run("router_bias_update", dict(rule=libmoe.BIAS_UPDATE_QUANTILE, num_experts=E, num_tokens=T, top_k=K),
                dict(bias=bias, scores=scores))
    load = torch.bincount((scores + bias).topk(K, -1).indices.reshape(-1), minlength=E)
    assert load.max() < 1.1 * T * K / E


def test_random_bits(gpu, rng):
    """Ids that point anywhere: nothing outside is touched, and the fault is reported."""
    T, E, K, C = 3000, 12, 3, 500
    wild = torch.randint(-(2**62), 2**62, (E, C), device="cuda")
    wild[:, ::2] %= T
    report = torch.zeros(3, device="cuda", dtype=torch.int64)
    dlogits = torch.full((T + 200, E), 77.0, device="cuda")
    gpu.run("expert_choice_bwd", dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, capacity=C), dict(
        logits=torch.randn(T, E, device="cuda"), token_ids=wild, dweights=torch.randn(E, C, device="cuda"), dlogits=dlogits[:T],
        report=report))
    torch.cuda.synchronize()
    assert report[0] & 0xFFFFFFFF == libmoe.FAULT_TOKEN_INDEX
    assert (dlogits[T:] == 77).all() and torch.isfinite(dlogits).all()
    ids = torch.randint(-(2**31), 2**31 - 1, (T, K), device="cuda", dtype=torch.int32)
    ids[::3] %= E
    kept = torch.empty_like(ids)
    weights = torch.rand(T, K, device="cuda")
    counts = torch.empty(E, device="cuda", dtype=torch.int64)
    gpu.run("capacity_fwd", dict(num_tokens=T, num_experts=E, top_k=K, capacity=C), dict(
        ids=ids, weights=weights, kept_ids=kept, kept_weights=torch.empty_like(weights), tokens_per_expert=counts))
    torch.cuda.synchronize()
    inside = ids[(ids >= 0) & (ids < E)]
    assert torch.equal(counts, torch.bincount(inside, minlength=E).clamp(max=C))
    assert torch.equal(torch.bincount(kept[kept >= 0], minlength=E), counts)
