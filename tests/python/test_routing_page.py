"""docs/routing.md names what there is, and its picture is what its script draws."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import libmoe
from libmoe import _header, _library

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "routing.md").read_text()
FIELDS = {field for struct in _header.structs.values() for field in struct.declarations}
# Options and functions of the systems that users come from.
THEIRS = {"use_pre_softmax", "norm_topk_prob", "fused_topk", "grouped_topk", "topkgating", "sinkhorn"}


def words():
    """Names in code: (constants, all others)."""
    inline = re.findall(r"`([^`\n]+)`", PAGE)
    found = {word for code in inline for word in re.findall(r"[A-Za-z_][A-Za-z0-9_]*", code)}
    return {w for w in found if w.isupper() and len(w) > 2}, {w for w in found if not w.isupper()}


def test_names_exist():
    constants, names = words()
    known = {name.removeprefix("MOE_") for name in _header.constants}
    # Written short behind their first: SECOND_EXPERT_ALL, _SAMPLING.
    unknown = {c for c in constants if c not in known and not any(k.endswith(c) for k in known) and c not in ("_INIT", "MOE_")}
    assert not unknown
    functions = set(_header.prototypes) | {name.rsplit("_", 1)[0] for name in _header.prototypes if name.endswith(("_fwd", "_bwd"))}
    assert not names - FIELDS - functions - THEIRS - {"moe_router_desc_t"}


def test_sinkhorn_snippet(rng):
    code = re.search(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S).group(1)
    with libmoe.Context("cpu") as ctx:
        scope = {"libmoe": libmoe, "ctx": ctx, "logits": rng.standard_normal((64, 8)).astype("float32")}
        exec(code, scope)
    assert scope["routed"].ids.shape == (64, 2)


def test_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    environment = os.environ | {"LIBMOE": _library.locate(), "PYTHONPATH": str(ROOT / "bindings" / "python")}
    script = [sys.executable, ROOT / "examples" / "routing" / "sinkhorn_load.py", tmp_path / "picture.png"]
    said = subprocess.run(script, capture_output=True, text=True, env=environment, check=True).stdout
    before, after = map(float, re.findall(r"([\d.]+) x", said))
    assert before > 3 and after < 1.2 and (tmp_path / "picture.png").stat().st_size > 10000
