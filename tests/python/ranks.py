"""Processes of their own for what uses torch.distributed: a process that did may abort while it exits."""

import os
import sys

import torch


def spawn(function, ranks, *arguments):
    """function(rank, *arguments) in so many processes; raises what one of them raises."""
    torch.multiprocessing.spawn(_run, (function, arguments), nprocs=ranks)


def _run(rank, function, arguments):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    function(rank, *arguments)
    sys.stdout.flush()
    # Past the destructors, in which gloo's threads are not joined.
    os._exit(0)
