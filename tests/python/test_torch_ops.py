"""torch.ops.libmoe: torch's own checks of operators, gradients against finite differences, inputs as PyTorch users give them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

import harness  # noqa: E402
import libmoe  # noqa: E402
import libmoe.torch as moe  # noqa: E402

fp64 = pytest.mark.cpu
T, D, F, E, K = 6, 8, 4, 5, 2
IN_ROWS = "input_layout=1,output_layout=1"


def randn(*shape, dtype=None, grad=True):
    dtype = dtype or (torch.float64 if harness.on_cpu() else torch.float32)
    return torch.randn(*shape, dtype=dtype, device=harness.device.name).requires_grad_(grad)


def ids_of(tokens=T, top_k=K, dtype=torch.int64):
    return torch.rand(tokens, E, device=harness.device.name).topk(top_k).indices.to(dtype)


def mask():
    return (torch.rand(T, E, device=harness.device.name) < 0.4).to(torch.uint8)


def experts(**more):
    given = {"w1": randn(E, 2 * F, D), "w2": randn(E, D, F), "b1": None, "b2": None, "weights": None, "row_weights": None}
    return tuple((given | more).values())


def samples():
    """Arguments of each operator."""
    plan, holes = moe.make_plan(ids_of(), E), mask()
    some = moe.make_plan(holes, E, int(holes.sum()))
    maps, some_maps = moe._dispatch.maps_of(plan), moe._dispatch.maps_of(some)
    router = {"aux_loss": 1, "aux_loss_coeff": 0.1, "z_loss": 1, "z_loss_coeff": 0.1}
    options = moe._define.encode(router)
    by_slot, by_mask = (T, K, T * K), (T, E, some.rows_max)
    weighted = experts(weights=randn(T, K), b1=randn(E, 2 * F), b2=randn(E, D))
    offsets, sizes = plan.group_offsets, plan.group_sizes
    shared = randn(T, D), randn(1, 2 * F, D), randn(1, D, F), torch.arange(2, device=offsets.device) * T
    routed = torch.ops.libmoe.router(randn(T, E, grad=False), K, None, None, None, 1, options)
    frozen = [t if t is None else t.detach() for t in weighted]
    h = torch.ops.libmoe.expert_mlp(randn(T, D, grad=False), *frozen, *maps, *by_slot, "", 0)[1]
    return {
        "dispatch_plan": [(ids_of(), E), (ids_of(dtype=torch.int32), E)],
        "dispatch_plan_mask": [(holes, int(holes.sum()))],
        "dispatch": [(randn(T, D), *maps, K), (randn(T, D), *some_maps, E)],
        "dispatch_backward": [(randn(T * K, D, grad=False), *maps, T, K)],
        "combine": [(randn(T * K, D), randn(T, K), *maps, T, K), (randn(T * K, D), None, *maps, T, K)],
        "combine_backward": [(randn(T, D, grad=False), randn(T * K, D, grad=False), randn(T, K, grad=False), *maps, K)],
        "expert_mlp": [
            (randn(T, D), *weighted, *maps, *by_slot, "", 0),
            (randn(T, D), *experts(), *maps, *by_slot, "", 1),
            (randn(T, D), *experts(row_weights=randn(some.rows_max)), *some_maps, *by_mask, "activation=1", 0),
            (randn(T, D, grad=False), *frozen, *maps, *by_slot, "", 2),
            (randn(T * K, D), *experts(row_weights=randn(T * K)), offsets, None, None, None, None, 0, 1, T * K,
             IN_ROWS, 0),
        ],
        "expert_mlp_backward": [(randn(T, D, grad=False), randn(T, D, grad=False), *frozen, h, *maps, *by_slot, "",
                                 [True, True, False, True, True, True, False])],
        "expert_mlp_beside": [
            (randn(T, D), *weighted, *maps, *by_slot, "", 0, *shared, IN_ROWS),
            (randn(T, D), *experts(row_weights=randn(some.rows_max)), *some_maps, *by_mask, "activation=1", 1, *shared, IN_ROWS + ",activation=1"),
            (randn(T, D, grad=False), *frozen, *maps, *by_slot, "", 2, *(t.detach() for t in shared), IN_ROWS),
        ],
        "expert_mlp_beside_backward": [
            (randn(T, D, grad=False), randn(T, D, grad=False), *frozen, h, *maps, *by_slot, "", [True, True, False, True, True, True, False],
             randn(T, D, grad=False), *(t.detach() for t in shared), None, IN_ROWS, [True, False, True])],
        "grouped_gemm": [(randn(T * K, D), randn(E, D, F), None, None, sizes, 1),
                         (randn(T * K, D), randn(E, F, D), randn(E, F), offsets, None, 0)],
        "grouped_gemm_backward": [(randn(T * K, F, grad=False), randn(T * K, D, grad=False), randn(E, F, D, grad=False), None,
                                   offsets, None, 0, [True, True, False])],
        "router": [(randn(T, E), K, None, None, None, 1, options), (randn(T, E), K, torch.rand(E, device=offsets.device), None, None, 1, "")],
        "router_backward": [(randn(T, E, grad=False), routed[1], torch.rand_like(routed[0]), torch.rand_like(routed[3]), routed[4],
                             None, 1, options)],
        "sinkhorn": [(randn(T, E, grad=False), "")],
        "expert_choice": [(randn(T, E), 2, None, "")],
        "expert_choice_backward": [(randn(T, E, grad=False), mask(), randn(T, E, grad=False), 2, "")],
        "capacity": [(ids_of(), randn(T, K), None, E, "capacity=2"),
                     (ids_of(), randn(T, K), torch.tensor([3], device=offsets.device), E, "capacity=2,policy=2")],
        "capacity_backward": [(ids_of(), randn(T, K, grad=False), ids_of(), randn(T, K, grad=False), E, "capacity=2")],
    }


NAMES = ["dispatch_plan", "dispatch_plan_mask", "dispatch", "dispatch_backward", "combine", "combine_backward", "expert_mlp",
         "expert_mlp_backward", "expert_mlp_beside", "expert_mlp_beside_backward", "grouped_gemm", "grouped_gemm_backward",
         "router", "router_backward", "sinkhorn", "expert_choice",
         "expert_choice_backward", "capacity", "capacity_backward"]


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    for arguments in samples()[name]:
        try:
            torch.library.opcheck(getattr(torch.ops.libmoe, name), arguments)
        except Exception as failure:
            # An operation that the device has no kernels for is skipped by its own exception.
            raise failure.__cause__ if isinstance(failure.__cause__, libmoe.Unsupported) else failure


def test_every_operator_is_checked():
    ours = {name.partition("::")[2].partition(".")[0] for name in torch._C._dispatch_get_all_op_names() if name.startswith("libmoe::")}
    assert ours == set(NAMES)


@fp64
@pytest.mark.parametrize("trans_b", [False, True])
def test_gmm_gradcheck(trans_b):
    sizes = torch.tensor([3, 0, 4, 1, 2])
    a, b = randn(10, D), randn(E, F, D) if trans_b else randn(E, D, F)
    assert torch.autograd.gradcheck(lambda a, b: libmoe.gmm(a, b, sizes, trans_b), (a, b))
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        (grad,) = torch.autograd.grad(libmoe.gmm(a, b, sizes, trans_b).sum(), a, create_graph=True)
        grad.sum().backward()


@fp64
def test_gradcheck_of_all_that_has_a_gradient():
    ids, holes = ids_of(), mask()
    plan, some = moe.make_plan(ids, E), moe.make_plan(holes, E, int(holes.sum()))
    check = torch.autograd.gradcheck
    assert check(lambda x: moe.dispatch(x, plan), (randn(T, D),))
    assert check(lambda x: moe.dispatch(x, some), (randn(T, D),))
    assert check(lambda rows, weights: moe.combine(rows, plan, weights), (randn(T * K, D), randn(T, K)))
    assert check(lambda rows: moe.combine(rows, plan), (randn(T * K, D),))
    dense = (randn(T, D), randn(E, 2 * F, D), randn(E, D, F), randn(T, E))
    assert check(lambda x, w1, w2, w: moe.expert_mlp(x, some, w1, w2, row_weights=moe._expert_mlp.row_weights_of(w, some)), dense)
    assert check(lambda x, w1, w2: moe.expert_mlp(x, plan, w1, w2, recompute=True), dense[:3])
    beside = (randn(T, D), randn(E, 2 * F, D), randn(E, D, F), randn(T, K), randn(T, D), randn(1, 6, D), randn(1, D, 3))
    assert check(lambda x, w1, w2, w, *shared: moe._beside.expert_mlp_beside(
        x, plan, w1, w2, w, None, None, None, shared, torch.tensor([0, T]), recompute=False, encoded="", shared_encoded=""), beside)
    transposed = (randn(T, D), randn(E, D, 2 * F), randn(E, F, D))
    assert check(lambda x, w1, w2: moe.expert_mlp(x, plan, w1.transpose(1, 2), w2.transpose(1, 2)), transposed)
    in_rows = (randn(T * K, D), randn(E, 2 * F, D), randn(E, D, F), randn(T * K))
    assert check(lambda x, w1, w2, w: moe.expert_rows(x, plan.group_offsets, w1, w2, w), in_rows)
    assert check(lambda logits: moe.route(logits, K, math=libmoe.MATH_FP64)[1], (randn(T, E),))
    assert check(lambda logits: moe.expert_choice(logits, 2, math=libmoe.MATH_FP64)[0], (randn(T, E),))
    assert check(lambda weights: moe.drop(ids, weights, E, capacity=2)[1], (randn(T, K),))


def test_gmm():
    sizes = torch.tensor([3, 0, 4, 1, 2])
    a, b = randn(10, 16, dtype=torch.float32), randn(E, 16, 24, dtype=torch.float32)
    expected = torch.cat([part.double() @ w.double() for part, w in zip(a.split(sizes.tolist()), b)])
    for where in ("cpu", harness.device.name):
        c = libmoe.gmm(a, b, sizes.to(where))
        assert torch.allclose(c.double(), expected, atol=2e-2 if a.is_cuda else 1e-5)
        assert torch.allclose(libmoe.gmm(a, b.transpose(1, 2).contiguous(), sizes.to(where), trans_b=True), c, atol=1e-5)
    # The transpose of a stored matrix is read where it lies, and its gradient comes back in its shape.
    seen = b.detach().transpose(1, 2).contiguous().requires_grad_()
    libmoe.gmm(a, seen.transpose(1, 2), sizes).square().sum().backward()
    libmoe.gmm(a, b, sizes).square().sum().backward()
    assert torch.allclose(seen.grad.transpose(1, 2), b.grad, atol=1e-2 if a.is_cuda else 1e-5)
    with pytest.raises(ValueError, match="do not fit"):
        libmoe.gmm(a, b, sizes[:-1])
    with pytest.raises(ValueError, match="batch_sizes are -1 or more, 9 together; a has 10 rows"):
        libmoe.gmm(a, b, torch.tensor([-1, 0, 4, 4, 2]))
    with pytest.raises(ValueError, match="11 together; a has 10 rows"):
        libmoe.gmm(a, b, torch.tensor([3, 0, 4, 1, 3], dtype=torch.int32))
    with pytest.raises(TypeError, match="batch_sizes has dtype torch.float32"):
        libmoe.gmm(a, b, sizes.float())


def test_inputs_as_users_give_them():
    x, w1, w2 = randn(T, D, dtype=torch.float32), randn(E, 2 * F, D, dtype=torch.float32), randn(E, D, F, dtype=torch.float32)
    ids = ids_of()
    plan = moe.make_plan(ids, E)
    y = moe.expert_mlp(x, plan, w1, w2)
    # No rows that are contiguous, an expanded gradient, ids of 32 bits.
    columns = x.detach().t().contiguous().t().requires_grad_()
    again = moe.expert_mlp(columns, moe.make_plan(ids.int(), E), w1, w2)
    assert torch.equal(again, y)
    again.sum().backward()
    y.sum().backward()
    assert torch.equal(columns.grad, x.grad)
    with pytest.raises(ValueError, match="w1"):
        moe.expert_mlp(x, plan, w1.double() if harness.on_cpu() else w1.half(), w2)
    with pytest.raises(TypeError, match="no option 'activatoin'"):
        moe.Experts(E, D, F, activatoin=1)
    with pytest.raises(ValueError, match="tokens"):
        moe.Experts(E, D, F, device=x.device)(x, ids[:-1], ids[:-1].float())
    if not harness.on_cpu():
        with pytest.raises(RuntimeError, match="w2 is on cpu"):
            moe.expert_mlp(x, plan, w1, w2.detach().cpu())


def test_shapes_that_do_not_fit():
    """The library sees addresses: what would read beyond a tensor is refused before."""
    x, w1, w2, plan = randn(T, D), randn(E, 2 * F, D), randn(E, D, F), moe.make_plan(ids_of(), E)
    refused = [
        ("w1", lambda: moe.expert_mlp(x, plan, w1[:, :-1].contiguous(), w2)),
        ("w1", lambda: moe.expert_mlp(x, plan, randn(E, 2 * F, D - 1), w2)),
        ("w2", lambda: moe.expert_mlp(x, plan, w1, randn(E, D + 1, F))),
        ("group_offsets", lambda: moe.expert_mlp(x, plan, w1[1:], w2[1:])),
        ("b1", lambda: moe.expert_mlp(x, plan, w1, w2, b1=randn(E, F))),
        ("b2", lambda: moe.expert_mlp(x, plan, w1, w2, b2=randn(D))),
        ("weights", lambda: moe.expert_mlp(x, plan, w1, w2, randn(T, K - 1))),
        ("row_weights", lambda: moe.expert_mlp(x, plan, w1, w2, row_weights=randn(T))),
        ("x", lambda: moe.expert_mlp(x[1:], plan, w1, w2)),
        ("weights", lambda: moe.combine(randn(T * K, D), plan, randn(T, K - 1))),
        ("rows", lambda: moe.combine(randn(T, D), plan)),
        ("a", lambda: moe.grouped_gemm(randn(T * K, D - 1), w1, plan.group_offsets)),
        ("bias", lambda: moe.grouped_gemm(randn(T * K, D), w1, plan.group_offsets, bias=randn(E, F))),
        ("group_offsets", lambda: moe.grouped_gemm(randn(T * K, D), w1, plan.group_sizes)),
        ("selection_bias", lambda: moe.route(randn(T, E), K, selection_bias=randn(E - 1))),
        ("padding_mask", lambda: moe.route(randn(T, E), K, padding_mask=torch.ones(T - 1, dtype=torch.bool, device=x.device))),
        ("weights", lambda: moe.drop(ids_of(), randn(T, K + 1), E, capacity=2)),
        ("ids", lambda: moe.make_plan(ids_of()[:, 0], E)),
        ("logits", lambda: moe.route(randn(2, T, E), K)),
        ("slots a token", lambda: moe.Experts(E, D, F, device=x.device)(x.float(), ids_of(), randn(T, K + 1))),
    ]
    for name, call in refused:
        with pytest.raises(ValueError, match=rf"{name}.*(has shape .*; it must be|, weights)"):
            call()
    with pytest.raises(TypeError, match="complex64"):
        moe.expert_mlp(x.to(torch.complex64), plan, w1, w2)


def test_gmm_under_autocast():
    a, b, sizes = randn(6, D, dtype=torch.float32), randn(E, D, F, dtype=torch.float32), torch.tensor([1, 2, 0, 2, 1])
    with torch.autocast(a.device.type, dtype=torch.bfloat16):
        c = libmoe.gmm(a.bfloat16(), b, sizes)
    assert c.dtype == torch.bfloat16 and torch.allclose(c.float(), libmoe.gmm(a, b, sizes), atol=0.2)
    c.float().sum().backward()
    assert b.grad.dtype == torch.float32 and b.grad.norm() > 0


def test_functions_under_autocast():
    x, plan = randn(T, D, dtype=torch.bfloat16), moe.make_plan(ids_of(), E)
    w1, w2, b1 = (randn(*shape, dtype=torch.float32) for shape in ((E, 2 * F, D), (E, D, F), (E, 2 * F)))
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        y = moe.expert_mlp(x, plan, w1, w2, b1=b1)
        h = moe.grouped_gemm(moe.dispatch(x, plan), w1, plan.group_offsets, bias=b1)
        rows = moe.expert_rows(moe.dispatch(x, plan), plan.group_offsets, w1, w2, b1=b1)
    assert {y.dtype, h.dtype, rows.dtype} == {torch.bfloat16}
    assert torch.allclose(y.float(), moe.combine(rows, plan).float(), atol=0.3)
    (y.float().sum() + h.float().sum()).backward()
    assert all(w.grad.dtype == torch.float32 and w.grad.norm() > 0 for w in (w1, w2, b1))


def test_parameters_that_were_left_on_meta():
    """Would silently give what memory held."""
    x, plan, w1, w2 = randn(T, D, grad=False), moe.make_plan(ids_of(), E), randn(E, 2 * F, D), randn(E, D, F)
    for call in (lambda: moe.expert_mlp(x, plan, w1.to("meta"), w2), lambda: moe.MoELayer(D, F, E, K, device="meta")(x),
                 lambda: moe.MoELayer(D, F, E, K, shared_ffn_size=F, device="meta").shared(x)):
        with pytest.raises(RuntimeError, match="meta"):
            call()
    with pytest.raises(ValueError, match="x has hidden size 7, the shared experts 8"):
        moe.SharedExperts(D, F, device=x.device)(x[:, 1:])


@fp64
def test_an_old_torch_is_named():
    code = "import torch; torch.__version__ = torch.torch_version.TorchVersion('2.7.1+cpu')\nimport libmoe.torch"
    environment = os.environ | {"PYTHONPATH": str(Path(libmoe.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "ImportError: libmoe.torch needs PyTorch 2.8 or newer; this is 2.7.1+cpu: pip install --upgrade torch" in done.stderr, done.stderr


def test_meta_tensors():
    """Shapes without data, as accelerate's and FSDP's deferred initialisation use them."""
    layer = moe.MoELayer(D, F, E, K, device="meta", shared_ffn_size=F)
    y, loss = layer(torch.empty(3, 4, D, device="meta"))
    assert y.shape == (3, 4, D) and y.device.type == "meta" and loss.shape == ()
