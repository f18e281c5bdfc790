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
