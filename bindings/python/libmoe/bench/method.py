"""How things are timed: CUDA-graph replays over rotating buffers, variants interleaved, medians with their spread."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

REPLAYS = 25
CACHE_MULTIPLE = 3


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median, 10th and 90th percentile of the replays."""

    median: float
    low: float
    high: float


def summarize(samples: list[float]) -> Timing:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)])


def rotations(bytes_per_set: int) -> int:
    """How many buffer sets keep a replay from finding its data in the L2 cache."""
    import torch

    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(64, -(-CACHE_MULTIPLE * cache // max(1, bytes_per_set))))


def time_gpu(variants: dict[str, list[Callable[[], None]]], replays: int = REPLAYS) -> dict[str, Timing]:
    """Times each variant, given as one callable a buffer set; all sets of a variant make one graph."""
    import torch

    graphs = {}
    side = torch.cuda.Stream()
    for name, calls in variants.items():
        with torch.cuda.stream(side):
            for call in calls[:2]:
                call()
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            for call in calls:
                call()
        graphs[name] = graph
    events = {name: [] for name in graphs}
    for replay in range(replays + 3):
        for name, graph in graphs.items():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            if replay >= 3:
                events[name].append((begin, end))
    torch.cuda.synchronize()
    return {
        name: summarize([b.elapsed_time(e) * 1e-3 / len(variants[name]) for b, e in pairs])
        for name, pairs in events.items()
    }


def time_eager(call: Callable[[], None], repeats: int = REPLAYS) -> Timing:
    """Event times of a peer that cannot be captured (it synchronises or allocates)."""
    import torch

    for _ in range(3):
        call()
    samples = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        samples.append(begin.elapsed_time(end) * 1e-3)
    return summarize(samples)


def time_host(call: Callable[[], None], calls: int = 200, repeats: int = 15, drain: Callable[[], None] = lambda: None):
    """Host seconds a call, with the device drained between batches so that no launch waits for room in the queue."""
    samples = []
    for _ in range(repeats + 2):
        drain()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - begin) / calls)
    drain()
    return summarize(samples[2:])


def gpu_state() -> dict:
    """Name, driver, clock and power as nvidia-smi reads them now."""
    fields = "name,driver_version,clocks.sm,power.draw"
    try:
        text = subprocess.run(
            ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in text.splitlines()[0].split(",")] if text.strip() else []
    return dict(zip(("device", "driver", "sm_clock", "power"), values))
