"""Forward and backward of the layer in one CUDA graph, replayed with other inputs and another routing."""

import libmoe
import reference
import torch
from layer import Layer, draw_ids


def test_layer_in_a_graph(gpu, rng):
    T, d, f, E, K = 700, 256, 128, 16, 2
    layer = Layer.draw(rng, T, d, f, E, K, torch.bfloat16)
    logits = torch.randn(T, E, device="cuda")
    ids, dlogits = torch.empty(T, K, device="cuda", dtype=torch.int32), torch.empty(T, E, device="cuda")
    t, b = layer.tensors, layer.buffers(gpu, "cuda")
    route = dict(logits_dtype=libmoe.DTYPE_FP32, num_tokens=T, num_experts=E, top_k=K, renormalize=libmoe.ON)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls = [
            gpu.prepare("router_fwd", route, dict(logits=logits, ids=ids, weights=t["weights"])),
            *layer.calls(gpu, b, t, ids),
            gpu.prepare("router_bwd", route, dict(logits=logits, ids=ids, dweights=b["dweights"], dlogits=dlogits)),
        ]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
    for replay in range(4):
        for tensor in (t["x"], t["dy"], logits):
            tensor.normal_()
        if replay == 2:
            logits[:, 3] += 6  # one expert gets a slot of nearly every token
        for output in (b["y"], b["dx"], dlogits):
            output.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        leaves = {name: v.double().requires_grad_() for name, v in t.items() if name in ("x", "w1", "w2")}
        leaf = logits.double().requires_grad_()
        chosen, weights = reference.router(leaf, K)
        assert torch.equal(chosen.int(), ids), replay
        y = reference.expert_mlp(leaves["x"], leaves["w1"], leaves["w2"], weights, chosen)
        y.backward(t["dy"].double())
        wanted = dict(y=y.detach(), dx=leaves["x"].grad, dw1=leaves["w1"].grad, dw2=leaves["w2"].grad)
        for name, ref in wanted.items():
            assert reference.error(b[name], ref) < 2.5e-2, (replay, name)
        assert reference.error(dlogits, leaf.grad) < 2.5e-2, replay


def test_shared_experts_on_a_second_stream(gpu):
    """To the bit what one stream gives, eager and in a graph."""
    T, d, f, E, K, G = 700, 256, 128, 16, 2, 192
    randn = lambda *size: (torch.randn(*size, device="cuda") * size[-1] ** -0.5).bfloat16()
    weights = dict(gate=randn(E, d), w1=randn(E, 2 * f, d), w2=randn(E, d, f), shared_w1=randn(2 * G, d), shared_w2=randn(d, G),
                   shared_gate=randn(1, d))
    layer = libmoe.MoELayer(gpu, weights, K, router={"renormalize": libmoe.ON})
    x, dy = torch.randn(T, d, device="cuda").bfloat16(), torch.randn(T, d, device="cuda").bfloat16()
    side = libmoe.SideStream(torch.cuda.Stream(), torch.cuda.Event(), torch.cuda.Event())

    def step(side=None):
        out = layer.forward(x, side=side)
        dx, grads = layer.backward(dy, out.saved, side=side)
        return [out.y, dx, *grads.values()]

    def same(ours, alone):
        torch.cuda.synchronize()
        assert len(ours) == 8 and all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(ours, alone, strict=True))

    for _ in range(5):
        same(step(side), step())
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = step(side)
    for _ in range(3):
        x.normal_(), dy.normal_()
        graph.replay()
        same(captured, step())


def test_counts_change_between_replays(gpu, rng):
    """The true number of tokens is read when the graph runs."""
    T, d, E, K = 300, 128, 8, 2
    ids = draw_ids(rng, T, E, K, "even")
    count = torch.tensor([T], device="cuda", dtype=torch.int32)
    offsets = torch.empty(E + 1, device="cuda", dtype=torch.int64)
    row_of_slot = torch.empty(T * K, device="cuda", dtype=torch.int32)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call = gpu.prepare("dispatch_plan", dict(num_tokens=T, num_experts=E, top_k=K),
                           dict(ids=ids, group_offsets=offsets, row_of_slot=row_of_slot, num_tokens=count))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            call()
    for true in (T, 0, 1, 123):
        count.fill_(true)
        row_of_slot.fill_(-7)
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        wanted = reference.plan(ids[:true], E)
        assert torch.equal(offsets, wanted["group_offsets"]), true
        assert torch.equal(row_of_slot[: true * K].long(), wanted["row_of_slot"]), true
        assert (row_of_slot[true * K :] == -7).all(), true
