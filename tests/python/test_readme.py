"""The README's programs, extracted and run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from libmoe import _library

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).resolve().parents[2]
CMAKE = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def snippets(language):
    found = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.M | re.S)
    assert found, f"the README has no {language}"
    return found


def run(command, **environment):
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_python():
    for number, code in enumerate(snippets("python")):
        if "import torch" in code:
            pytest.importorskip("torch", reason="PyTorch is not installed")
        output = run([sys.executable, "-c", code], LIBMOE=_library.locate(), PYTHONPATH=str(ROOT / "bindings/python"))
        assert output and "nan" not in output, f"snippet {number}: {output}"


@pytest.mark.skipif(not CMAKE, reason="needs cmake")
def test_cpp(tmp_path):
    (code,), (project,) = snippets("cpp"), snippets("cmake")
    assert len(code.splitlines()) <= 28
    (tmp_path / "route.cpp").write_text(code)
    (tmp_path / "CMakeLists.txt").write_text(project)
    run([ROOT / "scripts/install.sh", tmp_path / "installed"], LIBMOE=_library.locate())
    run([CMAKE, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_PREFIX_PATH={tmp_path / 'installed'}"])
    run([CMAKE, "--build", tmp_path / "build"])
    output = run([tmp_path / "build" / "route"])
    # Top-2 of the logits, softmax over the two: 1/(1+e^-1) and its complement.
    assert output.splitlines() == [
        "token 0: expert 0, 0.731", "token 0: expert 2, 0.269", "token 1: expert 1, 0.731", "token 1: expert 2, 0.269",
    ]


def test_files_that_it_names_exist():
    text = (ROOT / "README.md").read_text() + (ROOT / "docs/dependencies.md").read_text().replace("](../", "](")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link


def test_every_operation_has_its_row():
    """Functions of the table are the header's."""
    from libmoe import _header

    text = (ROOT / "README.md").read_text()
    named = set()
    for cell in re.findall(r"^\| (`moe_[^|]*)\|", text, flags=re.M):
        for stem, more in re.findall(r"`(moe_\w+)`((?:/`_\w+`)*)", cell):
            named.add(stem)
            named |= {re.sub(r"_[a-z]+$", end, stem) for end in re.findall(r"`(_\w+)`", more)}
    assert named and named <= set(_header.prototypes), named - set(_header.prototypes)
