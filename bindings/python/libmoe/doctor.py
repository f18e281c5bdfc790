"""python -m libmoe.doctor: what libmoe found on this machine, what is missing and how to get it, and a self-test."""

import ctypes
import importlib.metadata
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

DRIVER_NEEDED = 580
GOOD, MISSING, BROKEN = "ok", "--", "!!"


class Finding(NamedTuple):
    state: str
    what: str
    found: str
    advice: str = ""


def main():
    findings = []
    for check in (library, driver, gpus, nccl, packages, self_tests):
        for finding in check():
            findings.append(finding)
            print(f"[{finding.state}] {finding.what:14s} {finding.found}", flush=True)
            if finding.advice:
                print(f"{'':20s}{finding.advice}", flush=True)
    broken = [finding.what for finding in findings if finding.state == BROKEN]
    print(f"\nbroken: {', '.join(broken)}" if broken else "\nlibmoe works here")
    return 1 if broken else 0


def library():
    from . import _header, _library

    path = _library.locate()
    try:
        version = _library.version()
    except ImportError as error:
        yield Finding(BROKEN, "libmoe.so", str(error), "pip install ./bindings/python builds it; LIBMOE=path names another one")
        return
    yield Finding(GOOD, "libmoe.so", f"{version}, {path}")
    yield Finding(GOOD, "moe.h", str(_header.locate()))


def driver():
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        yield Finding(MISSING, "NVIDIA driver", "libcuda.so.1 is not on this machine: the CPU backend alone",
                      f"GPUs need an NVIDIA driver of version {DRIVER_NEEDED} or newer")
        return
    text = _nvidia_smi("driver_version")
    version = text[0] if text else "of unknown version (no nvidia-smi)"
    old = text and int(version.split(".")[0]) < DRIVER_NEEDED
    yield Finding(BROKEN if old else GOOD, "NVIDIA driver", version,
                  f"kernels of nvcc 13 need {DRIVER_NEEDED} or newer; a CUDA 12.8 toolkit builds for older ones" if old else "")


def gpus():
    import libmoe

    names = _nvidia_smi("name")
    for ordinal in range(max(len(names), 1)):
        name = names[ordinal] if names else "a GPU"
        try:
            with libmoe.Context(ordinal) as ctx:
                info = ctx.info
        except (libmoe.NoDriver, libmoe.UnsupportedDevice) as error:
            if names:
                yield Finding(BROKEN, f"cuda:{ordinal}", str(error))
        except libmoe.Unsupported as error:
            yield Finding(MISSING, f"cuda:{ordinal}", str(error), "build libmoe with nvcc: without MOE_CUDA=0")
        except Exception as error:  # whatever it is, the user wants to read it here
            yield Finding(BROKEN, f"cuda:{ordinal}", f"{type(error).__name__}: {error}")
        else:
            major, minor = divmod(info["compute_capability"], 10)
            found = f"{name}, compute capability {major}.{minor}, {info['multiprocessors']} multiprocessors"
            yield Finding(GOOD, f"cuda:{ordinal}", found)


def nccl():
    for name in ("libnccl.so.2", *_wheels("nvidia/nccl/lib/libnccl.so.2")):
        try:
            loaded = ctypes.CDLL(name)
        except OSError:
            continue
        number = ctypes.c_int()
        loaded.ncclGetVersion(ctypes.byref(number))
        version = f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"
        yield Finding(GOOD, "NCCL", f"{version}, {name}")
        return
    yield Finding(MISSING, "NCCL", "not found: no expert parallelism over several GPUs", "pip install nvidia-nccl-cu13")


def packages():
    for name, oldest, use in (("numpy", (1, 24), "arrays"), ("torch", (2, 8), "libmoe.torch"),
                              ("transformers", (5, 7), "libmoe.transformers"), ("matplotlib", (0, 0), "pictures")):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(MISSING, name, f"not installed ({use})", f"pip install {name}")
            continue
        old = tuple(int(part) for part in version.split(".")[:2]) < oldest
        wanted = ".".join(map(str, oldest))
        yield Finding(MISSING if old else GOOD, name, version, f"{use} needs {wanted}: pip install --upgrade {name}" if old else "")


def self_tests():
    yield _self_test("cpu", np.asarray)
    try:
        import torch
    except ImportError:
        if _nvidia_smi("name"):
            yield Finding(MISSING, "self-test GPU", "left out: its arrays are PyTorch's", "pip install torch")
        return
    for ordinal in range(torch.cuda.device_count()):
        yield _self_test(f"cuda:{ordinal}", lambda x, device=f"cuda:{ordinal}": torch.from_numpy(x).to(device))


def _self_test(device, array):
    """A layer's forward and backward in fp32 beside NumPy in fp64."""
    import libmoe

    begin = time.monotonic()
    rng = np.random.default_rng(0)
    x, w1, w2, dy = (rng.standard_normal(shape) for shape in ((64, 32), (4, 32, 32), (4, 32, 16), (64, 32)))
    logits = rng.standard_normal((64, 4))
    try:
        with libmoe.Context(device) as ctx:
            x32, w1_32, w2_32, dy32, logits32 = (array(a.astype(np.float32)) for a in (x, w1, w2, dy, logits))
            route = libmoe.router_fwd(ctx, logits32, 2)
            plan = libmoe.dispatch_plan(ctx, route.ids, 4)
            y, h = libmoe.expert_mlp_fwd(ctx, plan, x32, w1_32, w2_32, route.weights)
            grads = libmoe.expert_mlp_bwd(ctx, plan, dy32, x32, w1_32, w2_32, h, route.weights)
            ours = [_host(out) for out in (y, grads.dx, grads.dw1, grads.dw2)]
    except Exception as error:  # the finding is the point
        return Finding(BROKEN, f"self-test {device}", f"{type(error).__name__}: {error}")
    worst = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, _reference(x, w1, w2, dy, logits)))
    found = f"a layer forward and backward, error {worst:.1e} against fp64, {time.monotonic() - begin:.1f} s"
    return Finding(GOOD if worst < 1e-2 else BROKEN, f"self-test {device}", found)


def _reference(x, w1, w2, dy, logits):
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :2]
    y, dx, dw1, dw2 = np.zeros_like(x), np.zeros_like(x), np.zeros_like(w1), np.zeros_like(w2)
    for e in range(len(w1)):
        t = np.nonzero((ids == e).any(1))[0]
        weight = scores[t, e][:, None]
        gate, up = np.split(x[t] @ w1[e].T, 2, axis=1)
        sigmoid = 1 / (1 + np.exp(-gate))
        act = gate * sigmoid * up
        y[t] += weight * (act @ w2[e].T)
        dact = weight * dy[t] @ w2[e]
        dh = np.concatenate([dact * up * sigmoid * (1 + gate * (1 - sigmoid)), dact * gate * sigmoid], axis=1)
        dx[t] += dh @ w1[e]
        dw1[e], dw2[e] = dh.T @ x[t], (weight * dy[t]).T @ act
    return y, dx, dw1, dw2


def _host(x):
    return x.cpu().numpy() if hasattr(x, "cpu") else np.asarray(x)


def _nvidia_smi(field):
    if not shutil.which("nvidia-smi"):
        return []
    done = subprocess.run(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"], capture_output=True, text=True)
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []


def _wheels(path):
    """Such a file among the installed packages."""
    return [str(found) for folder in sys.path if (found := Path(folder) / path).exists()]


if __name__ == "__main__":
    sys.exit(main())
