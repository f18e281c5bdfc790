"""MOE_LOG and MOE_CHECK, each in a process of its own, since they are read once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from libmoe import _library

pytestmark = pytest.mark.cpu

# A plan with strict ids, one of which is out of range; a report of the caller's own if asked for.
CODE = """
import sys
import numpy as np
import libmoe
from libmoe import _library
ctx = libmoe.Context("cpu")
report = np.zeros(3, np.int64)
args = {"ids": np.array([[0, 9]], np.int32), "group_offsets": np.zeros(5, np.int64), "row_of_slot": np.zeros(2, np.int32)}
try:
    ctx.run("dispatch_plan", {"num_tokens": 1, "num_experts": 4, "top_k": 2, "strict_ids": 1}, args | {"report": report})
    print("success")
except libmoe.DeviceFault as fault:
    print(fault)
print(ctx.report_message(report))
_library.library().moe_context_create(-7, None)
"""


def run(**environment):
    clean = {name: value for name, value in os.environ.items() if name not in ("MOE_LOG", "MOE_CHECK")}
    places = {"LIBMOE": _library.locate(), "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "bindings" / "python")}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=clean | places | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("level", [None, "off", "warn", "info", "trace", "nonsense"])
def test_log(level):
    said = run(**({"MOE_LOG": level} if level else {}))[1]
    assert all(line.startswith("libmoe: ") for line in said.splitlines())
    assert ("moe_context_create: ctx is NULL" in said) == (level in ("warn", "info", "trace"))
    assert ("context created" in said) == (level in ("info", "trace"))
    # What is needed to replay the call: function, description, arguments.
    traced = [line for line in said.splitlines() if "moe_dispatch_plan moe_dispatch_desc_t" in line]
    assert len(traced) == (level == "trace")
    assert all(words in line for line in traced for words in ("strict_ids: 1", "num_experts: 4", "group_offsets: 0x", "workspace"))


def test_check_turns_a_fault_into_a_status():
    fault = "slot 1: expert id 9 is out of range; the slot was skipped"
    assert run()[0] == ["success", fault]
    (message, report), _ = run(MOE_CHECK="1")
    assert message.startswith("moe_dispatch_plan: ") and message.endswith(fault)
    assert report == fault, "the caller's report is filled too"
    assert run(MOE_CHECK="0")[0][0] == "success"
