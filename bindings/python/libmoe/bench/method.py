"""How things are timed: CUDA-graph replays over rotating buffers, variants interleaved, medians with their spread."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from .peers.policy import require_same

REPLAYS = 25
CACHE_MULTIPLE = 3


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median, 10th and 90th percentile of the replays."""

    median: float
    low: float
    high: float

    def per_call(self, calls: int) -> Timing:
        return Timing(self.median / calls, self.low / calls, self.high / calls)


def summarize(samples: list[float]) -> Timing:
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Timing(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)])


def rotations(bytes_per_set: int) -> int:
    """How many buffer sets keep a replay from finding its data in the L2 cache."""
    import torch

    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(64, -(-CACHE_MULTIPLE * cache // max(1, bytes_per_set))))


def capture(calls: list[Callable], stream):
    """A graph of the calls, and what the last one gave."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            result = call()
    return graph, result


def interleave(runs: dict[str, Callable[[], None]], replays: int) -> dict[str, Timing]:
    """Event times of each, the runs taking turns, in another order each time: what ran before leaves a card warm or cool."""
    import torch

    events = {name: [] for name in runs}
    for replay in range(replays + 3):
        for name, run in random.sample(list(runs.items()), len(runs)):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            if replay >= 3:
                events[name].append((begin, end))
    torch.cuda.synchronize()
    return {name: summarize([b.elapsed_time(e) * 1e-3 for b, e in pairs]) for name, pairs in events.items()}


def time_gpu(
    variants: dict[str, list[Callable[[], None]]], replays: int = REPLAYS, peers: dict[str, list[Callable]] | None = None
) -> dict[str, Timing]:
    """Times each variant, given as one callable a buffer set; all sets of a variant make one graph.

    Peers take turns with the variants, both captured and as they are called from Python: the faster of the two is their time. A
    peer that cannot be captured has only the other.
    """
    import torch

    side = torch.cuda.Stream()
    runs, size = {}, {}
    for name, calls in variants.items():
        with torch.cuda.stream(side):
            for call in calls[:2]:
                call()
        side.synchronize()
        runs[name], size[name] = capture(calls, side)[0].replay, len(calls)
    ways = {name: peer_runs(name, calls, side) for name, calls in (peers or {}).items()}
    for name, by_way in ways.items():
        runs.update(by_way)
        size.update(dict.fromkeys(by_way, len(peers[name])))
    timings = {run: t.per_call(size[run]) for run, t in interleave(runs, replays).items()}
    for name, by_way in ways.items():
        if by_way:
            timings[name] = min((timings.pop(way) for way in by_way), key=lambda t: t.median)
    return timings


def peer_runs(name: str, calls: list[Callable], stream) -> dict[str, Callable[[], None]]:
    """The ways in which a peer runs; none where it fails."""

    def eager():
        for call in calls:
            call()

    try:
        eager()
    except Exception as error:
        print(f"{name} failed: {type(error).__name__}: {str(error)[:200]}", flush=True)
        return {}
    graph = captured_peer(name, calls, stream)
    return {f"{name} (eager)": eager, **({f"{name} (captured)": graph.replay} if graph else {})}


def captured_peer(name: str, calls: list[Callable], stream):
    """The graph of a peer's calls; None where it cannot be captured, or where replaying it does not do the work."""
    import torch

    def tensors(result):
        return [t for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, torch.Tensor)]

    try:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                expected = call()
            expected = [t.clone() for t in tensors(expected)]
        stream.synchronize()
        graph, result = capture(calls, stream)
        for t in tensors(result):
            t.detach().fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        for t, e in zip(tensors(result), expected):
            require_same(f"{name}, captured,", t, e)
        return graph
    except Exception as error:
        print(f"{name} cannot be captured: {type(error).__name__}: {str(error)[:200]}", flush=True)
        torch.cuda.synchronize()
        # A capture that failed leaves the generator of random numbers believing that it goes on; one that succeeds ends that.
        capture([lambda: torch.zeros(1, device="cuda")], stream)
        return None


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
