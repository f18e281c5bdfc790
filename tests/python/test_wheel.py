"""The wheel: its tag and contents, what it needs of a system, and that it works with nothing else beside it."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from libmoe import _library

pytest.importorskip("hatchling", reason="hatchling is not installed")
pytestmark = [pytest.mark.cpu, pytest.mark.skipif(bool(os.environ.get("LIBMOE_INSTALLED")), reason="tests an installed package")]

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bindings" / "python"
OLDEST = (3, 10)


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    environment = os.environ | {"LIBMOE": str(Path(_library.locate()).resolve())}
    run(sys.executable, "-m", "pip", "wheel", PACKAGE, "--no-deps", "--no-build-isolation", "--quiet", "-w", folder, env=environment)
    (path,) = folder.glob("*.whl")
    return path


def test_name_and_contents(wheel):
    name, version, *tag = wheel.stem.split("-")
    assert (name, version) == ("libmoe", _library.version()) and tag[:2] == ["py3", "none"]
    assert tag[2].startswith("manylinux_2_") and int(tag[2].split("_")[2]) <= 34, "glibc 2.34 is the floor that is promised"
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(path.relative_to(PACKAGE)) for path in (PACKAGE / "libmoe").rglob("*.py")}
    assert sources | {"libmoe/moe.h", "libmoe/libmoe.so"} <= set(names)
    assert all(part.startswith(("libmoe/", f"libmoe-{version}.dist-info/")) for part in names)


def test_auditwheel_agrees_with_the_tag(wheel):
    pytest.importorskip("auditwheel", reason="auditwheel is not installed")
    words = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
    tag = wheel.stem.split("-")[-1]
    assert f'is consistent with the following platform tag: "{tag}"' in words, words


def test_it_works_alone(wheel, tmp_path):
    """Unpacked, with neither the source tree nor LIBMOE to be found: a layer on NumPy arrays."""
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = """
import libmoe, numpy as np
assert libmoe.__file__.startswith({folder!r}), libmoe.__file__
with libmoe.Context("cpu") as ctx:
    out = libmoe.router_fwd(ctx, np.array([[3.0, 1.0, 2.0]], np.float32), 2)
print(libmoe.version(), out.ids.tolist(), libmoe._library.locate())
""".format(folder=str(tmp_path))
    environment = {name: value for name, value in os.environ.items() if name not in ("LIBMOE", "PYTHONPATH")}
    output = run(sys.executable, "-c", code, env=environment | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert output.split(maxsplit=1)[1].strip() == f"[[0, 2]] {tmp_path}/libmoe/libmoe.so"


def test_sources_are_of_the_oldest_python():
    for path in (PACKAGE / "libmoe").rglob("*.py"):
        ast.parse(path.read_text(), str(path), feature_version=OLDEST)


@pytest.mark.parametrize("module, words", [
    ("torch", "libmoe.torch needs PyTorch 2.8 or newer: pip install torch"),
    ("transformers", "libmoe.transformers needs Transformers 5.7 or newer"),
    ("megablocks", "libmoe.torch needs PyTorch 2.8 or newer: pip install torch"),
    ("megatron", "libmoe.torch needs PyTorch 2.8 or newer: pip install torch"),
])
def test_import_errors_name_what_is_missing(module, words):
    missing = module if module == "transformers" else "torch"
    code = f"import sys; sys.modules[{missing!r}] = None\nimport libmoe\nimport libmoe.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(PACKAGE)})
    assert done.returncode == 1 and words in done.stderr and "pip install" in done.stderr, done.stderr
