"""One context, many threads and streams; and the caller's CUDA context stays as it was."""

import ctypes
import threading

import libmoe
import torch
from layer import Layer

NAMES = ("y", "dx", "dw1", "dw2", "dweights")


def current_context() -> int:
    handle = ctypes.c_void_p()
    assert ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(handle)) == 0
    return handle.value or 0


def test_eight_threads_two_streams(gpu, rng):
    layers = [Layer.draw(rng, 400, 256, 128, 8, 2, torch.bfloat16, "skewed") for _ in range(8)]
    alone = [layer.on(gpu) for layer in layers]
    streams = [torch.cuda.Stream() for _ in range(2)]
    failures = []

    def work(i):
        try:
            for _ in range(6):
                stream = streams[i % 2]
                with torch.cuda.stream(stream):
                    buffers = layers[i].buffers(gpu, "cuda")
                    for call in layers[i].calls(gpu, buffers, layers[i].tensors, layers[i].ids):
                        call()
                stream.synchronize()
                for name in NAMES:
                    if not torch.equal(buffers[name], alone[i][name]):
                        failures.append((i, name))
        except Exception as error:
            failures.append((i, repr(error)))

    torch.cuda.synchronize()
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures


def test_two_contexts(gpu, rng):
    layer = Layer.draw(rng, 200, 128, 64, 4, 2, torch.bfloat16)
    one = layer.on(gpu)
    with libmoe.Context("cuda:0") as second:
        two = layer.on(second)
    again = layer.on(gpu)
    for name in NAMES:
        assert torch.equal(one[name], two[name]) and torch.equal(one[name], again[name]), name


def test_current_context_is_kept(gpu, rng):
    layer = Layer.draw(rng, 100, 64, 32, 4, 2, torch.bfloat16)
    before = current_context()
    layer.on(gpu)
    with libmoe.Context("cuda:0"):
        assert current_context() == before
    assert current_context() == before and before != 0


def test_a_thread_without_a_context(gpu, rng):
    """Calls work, and leave none behind, where no CUDA context is current; errors are the thread's own."""
    layer = Layer.draw(rng, 64, 64, 32, 4, 2, torch.bfloat16)
    buffers = layer.buffers(gpu, "cuda")
    calls = layer.calls(gpu, buffers, layer.tensors, layer.ids)
    torch.cuda.synchronize()
    seen = []

    def work():
        seen.append(current_context())
        for call in calls:
            call()
        seen.append(current_context())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert seen == [0, 0]
    assert torch.equal(buffers["y"], layer.on(gpu)["y"])
