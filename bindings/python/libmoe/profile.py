"""python -m libmoe.profile MODEL: times the experts of a Transformers model with libmoe beside what the model uses now.

MODEL is a name on the hub, a folder, a config.json, or a model type such as mixtral or qwen3_moe (its default sizes). Times
forward, forward with backward, and decoding (under a CUDA graph on a GPU), prints a table and draws a picture.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

PEERS = ("grouped_mm", "eager")
DECODE = (1, 8, 32)
# Names that models have for the experts a token has.
TOP_K = ("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m libmoe.profile", description=__doc__.partition("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("--device", help="cpu or cuda:N; default: a GPU where there is one")
    parser.add_argument("--dtype", default=None, help="default: bfloat16 on a GPU, float32 on the CPU")
    parser.add_argument("--tokens", type=int, default=4096, help="of a training step")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--shrink", type=int, default=1, help="divides hidden size and expert width: for a CPU")
    parser.add_argument("--out", type=Path, help="folder for profile.json and profile.png")
    options = parser.parse_args(arguments)
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"libmoe.profile needs {error.name}: pip install {error.name}") from error
    device = torch.device(options.device or ("cuda:0" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    experts, top_k = load(options.model, options.shrink, device, dtype)
    # [E, d, f], or [E, f, d] transposed.
    hidden = experts.down_proj.shape[2 if experts.is_transposed else 1]
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    what = f"{type(experts).__name__}: {experts.num_experts} experts, {top_k} a token, hidden size {hidden}, {dtype} on {name}"
    print(what)
    cases = [("forward", options.tokens), ("forward and backward", options.tokens), *(("decode", tokens) for tokens in DECODE)]
    rows, total = {}, len(cases) * (1 + len(PEERS))
    for number, (case, tokens) in enumerate(cases):
        for place, implementation in enumerate(("libmoe", *PEERS)):
            progress(number * (1 + len(PEERS)) + place, total, f"{case} T={tokens} {implementation}")
            key = f"{case}, T={tokens}"
            seconds = measure(experts, implementation, case, tokens, top_k, hidden, options.repeats)
            rows.setdefault(key, {})[implementation] = seconds
    progress(total, total, "")
    print(table(rows))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "profile.json").write_text(json.dumps({"what": what, "seconds": rows}, indent=1) + "\n")
        draw(options.out / "profile.png", what, rows)
    return rows


def load(model, shrink, device, dtype):
    """The model's experts with random weights, and how many a token has."""
    import importlib

    import torch
    from transformers import AutoConfig

    import libmoe.transformers

    libmoe.transformers.register()
    path = Path(model)
    if path.exists():
        config = AutoConfig.from_pretrained(path)
    else:
        try:
            config = AutoConfig.for_model(model)
        except ValueError:
            config = AutoConfig.from_pretrained(model)
    config = config.get_text_config()
    for field in ("hidden_size", "intermediate_size", "moe_intermediate_size"):
        if isinstance(getattr(config, field, None), int):
            setattr(config, field, max(getattr(config, field) // shrink, 16))
    widths = getattr(config, "moe_intermediate_size", None)
    # Where experts are of several kinds, they are told which they are.
    kind = [max(widths[0] // shrink, 16)] if isinstance(widths, (list, tuple)) else []
    package = type(config).__module__.rpartition(".")[0]
    module = importlib.import_module(f"{package}.modeling_{package.rpartition('.')[2]}")
    reasons = []
    for candidate in vars(module).values():
        if isinstance(candidate, type) and hasattr(candidate, "_apply_gate") and candidate.__module__ == module.__name__:
            try:
                experts = made(candidate, [config, *kind], device, dtype)
            except (AttributeError, TypeError) as error:  # the experts of another part of the model, or a size that is not told
                reasons.append(f"{candidate.__name__}: {str(error).splitlines()[0][:99]}")
                continue
            top_k = next((getattr(config, name) for name in TOP_K if isinstance(getattr(config, name, None), int)), None)
            if top_k is not None:
                return experts, top_k
            reasons.append(f"{candidate.__name__}: the configuration does not say how many experts a token has ({TOP_K[0]})")
    why = "; ".join(reasons) or "no experts that use Transformers' experts interface"
    raise SystemExit(f"{model} ({type(config).__name__}) has {'experts that cannot be made: ' if reasons else ''}{why}")


def made(experts_class, arguments, device, dtype):
    """Its experts with random weights, never in a wider dtype."""
    import torch

    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            experts = experts_class(*arguments)
    finally:
        torch.set_default_dtype(default)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0, 0.02)
    return experts


def measure(experts, implementation, case, tokens, top_k, hidden, repeats):
    """Median seconds; None where the implementation cannot do it."""
    import torch

    device, dtype = experts.down_proj.device, experts.down_proj.dtype
    experts.config._experts_implementation = implementation
    generator = torch.Generator(device).manual_seed(0)
    ids = torch.rand(tokens, experts.num_experts, device=device, generator=generator).topk(top_k).indices
    weights = torch.full((tokens, top_k), 1 / top_k, device=device, dtype=dtype)
    x = torch.randn(tokens, hidden, device=device, dtype=dtype, generator=generator)

    def forward():
        with torch.no_grad():
            experts(x, ids, weights)

    def step():
        leaf = x.detach().requires_grad_()
        experts(leaf, ids, weights).backward(x)
        for parameter in experts.parameters():
            parameter.grad = None

    call = step if case == "forward and backward" else forward
    try:
        if case == "decode" and device.type == "cuda":
            call = captured(call)
        return median_seconds(call, repeats, device)
    except Exception as error:  # a peer that cannot be captured or has no kernel: the table says so
        print(f"\r{implementation}, {case}, T={tokens}: {type(error).__name__}: {str(error).splitlines()[0][:90]}", file=sys.stderr)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return None


def captured(call):
    import torch

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        call()
    return graph.replay


def median_seconds(call, repeats, device):
    import torch

    samples = []
    for number in range(repeats + 2):
        if device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            seconds = begin.elapsed_time(end) * 1e-3
        else:
            start = time.perf_counter()
            call()
            seconds = time.perf_counter() - start
        if number >= 2:
            samples.append(seconds)
    return statistics.median(samples)


def progress(done, total, what):
    if sys.stderr.isatty():
        filled = 30 * done // total
        end = "\n" if done == total else ""
        print(f"\r[{'#' * filled}{'.' * (30 - filled)}] {what:50s}", end=end, file=sys.stderr, flush=True)


def table(rows):
    """Milliseconds, and how many times faster libmoe is than the best of the others."""
    names = ("libmoe", *PEERS)
    lines = [f"{'ms':28s}" + "".join(f"{name:>12s}" for name in names) + f"{'gain':>9s}"]
    for key, seconds in rows.items():
        cells = "".join(f"{seconds[name] * 1e3:12.3f}" if seconds[name] else f"{'-':>12s}" for name in names)
        others = [seconds[name] for name in PEERS if seconds[name]]
        gain = f"{min(others) / seconds['libmoe']:8.2f}x" if others and seconds["libmoe"] else f"{'-':>9s}"
        lines.append(f"{key:28s}{cells}{gain}")
    return "\n".join(lines)


def draw(path, what, rows):
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no picture (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(rows), figsize=(2.4 * len(rows), 3.4), constrained_layout=True)
    for panel, (key, seconds) in zip(panels, rows.items()):
        shown = {name: value * 1e3 for name, value in seconds.items() if value}
        panel.bar(shown.keys(), shown.values(), color=["#0b6e4f", "#8d99ae", "#c9ada7"][:len(shown)])
        panel.set_title(key.replace(", ", "\n"), fontsize=9)
        panel.tick_params(axis="x", labelrotation=30, labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("ms")
    figure.suptitle(what, fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
