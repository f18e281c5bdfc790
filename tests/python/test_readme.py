"""The programs of the README and of docs/, extracted and run."""

import json
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


def snippets(language, document="README.md"):
    found = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), flags=re.M | re.S)
    assert found, f"{document} has no {language}"
    return found


def run(command, **environment):
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("document", ["README.md", "docs/pytorch.md", "docs/transformers.md"])
def test_python(document):
    for number, code in enumerate(snippets("python", document)):
        for package in ("torch", "transformers"):
            if re.search(rf"(import|from) (libmoe\.)?{package}\b", code):
                pytest.importorskip(package, reason=f"{package} is not installed")
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
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_its_table_of_speed_is_that_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benches")
    import speed_table

    text, targets = (ROOT / "README.md").read_text(), (ROOT / "benches/results/targets.json").read_text()
    assert speed_table.with_table(text, json.loads(targets)) == text, "run benches/speed_table.py"


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
