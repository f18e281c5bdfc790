"""Few tokens, from ids to output in one CUDA graph: replayed with other routings, to the bit the same each time."""

import libmoe
import pytest
import reference
import torch
from layer import draw_ids

WIDTHS = {"many experts": (264, 136, 64, 6), "wide experts": (1024, 2048, 8, 2)}


def weights_of(shape, dtype):
    d, f, E, _ = WIDTHS[shape]
    randn = lambda *size, scale: (torch.randn(*size, device="cuda") * scale).to(dtype)
    return randn(E, 2 * f, d, scale=d**-0.5), randn(E, d, f, scale=f**-0.5)


def captured(gpu, shape, T, dtype, w1, w2):
    """(graph, inputs, outputs, what the graph's calls use besides) of plan and expert MLP."""
    d, f, E, K = WIDTHS[shape]
    plan = dict(num_tokens=T, num_experts=E, top_k=K)
    R = gpu.query("dispatch_rows_max", plan)
    ints = lambda size, kind=torch.int32: torch.empty(size, device="cuda", dtype=kind)
    maps = dict(group_offsets=ints(E + 1, torch.int64), row_of_slot=ints(T * K), slot_of_row=ints(R), token_of_row=ints(R))
    inputs = dict(ids=torch.zeros(T, K, device="cuda", dtype=torch.int32), x=torch.zeros(T, d, device="cuda", dtype=dtype),
                  weights=torch.ones(T, K, device="cuda"))
    y = torch.empty(T, d, device="cuda", dtype=dtype)
    desc = dict(dtype=libmoe.DTYPE_BF16 if dtype == torch.bfloat16 else libmoe.DTYPE_FP16, num_tokens=T, rows_max=R, top_k=K,
                num_experts=E, hidden_size=d, ffn_size=f)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls = [gpu.prepare("dispatch_plan", plan, dict(ids=inputs["ids"], **maps)),
                 gpu.prepare("expert_mlp_fwd", desc, dict(x=inputs["x"], w1=w1, w2=w2, y=y, weights=inputs["weights"], **maps))]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
    return graph, inputs, y, calls


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("shape", WIDTHS)
@pytest.mark.parametrize("T", (1, 3, 16, 64, 128))
def test_ids_to_output_in_a_graph(gpu, rng, shape, T, dtype):
    _, _, E, K = WIDTHS[shape]
    w1, w2 = weights_of(shape, dtype)
    graph, inputs, y, _kept = captured(gpu, shape, T, dtype, w1, w2)
    for kind in ("even", "skewed", "one", "few", "dropped"):
        ids = draw_ids(rng, T, E, K, kind)
        inputs["ids"].copy_(ids)
        inputs["x"].normal_()
        inputs["weights"].uniform_(0.1, 1)
        results = []
        for _ in range(3):
            y.fill_(float("nan"))
            graph.replay()
            torch.cuda.synchronize()
            results.append(y.clone())
        assert all(torch.equal(results[0], other) for other in results[1:]), kind
        wanted = reference.expert_mlp(inputs["x"].double(), w1.double(), w2.double(), inputs["weights"].double(), ids)
        assert reference.error(y, wanted) < reference.TOLERANCE[dtype], kind


@pytest.mark.parametrize("shape", WIDTHS)
def test_weights_written_just_before(gpu, rng, shape):
    """The launches of one call overlap; what came before the call is finished before its weights are read."""
    _, _, E, K = WIDTHS[shape]
    T, dtype = 32, torch.bfloat16
    w1, w2 = weights_of(shape, dtype)
    graph, inputs, y, _kept = captured(gpu, shape, T, dtype, w1, w2)
    inputs["ids"].copy_(draw_ids(rng, T, E, K, "even"))
    inputs["x"].normal_()
    for _ in range(10):
        w1.normal_(0, 0.05), w2.normal_(0, 0.05)
        graph.replay()
        first = y.clone()
        torch.cuda.synchronize()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(first, y)
