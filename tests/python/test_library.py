"""The shared library as an object: what it exports, what it needs, how it is named; and the ways to install it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import libmoe
from libmoe import _header, _library

pytestmark = pytest.mark.cpu

ROOT = Path(__file__).resolve().parents[2]
CMAKE = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def output(*command, **environment):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dynamic():
    return output("readelf", "--wide", "--dynamic", _library.locate())


def test_exports_are_the_headers_functions():
    lines = output("nm", "--dynamic", "--defined-only", _library.locate()).splitlines()
    assert {line.split()[-1] for line in lines} == set(_header.prototypes)


def test_needs_no_cuda(dynamic):
    needed = set(re.findall(r"NEEDED.*\[(.*?)\]", dynamic))
    assert {re.sub(r"\.so.*", "", name) for name in needed} <= {"libc", "libm", "libgcc_s", "ld-linux-x86-64", "libdl", "libpthread"}
    assert "PATH" not in dynamic, "it looks for libraries in places of its own"


def test_name_and_flags(dynamic):
    assert f"[libmoe.so.{libmoe.version().split('.')[0]}]" in re.search("SONAME.*", dynamic)[0]
    assert "NODELETE" in dynamic and "NOW" in dynamic


def test_survives_being_closed():
    """A thread that used the library may end after dlclose."""
    code = """
import ctypes, _ctypes, threading, sys
used, closed = threading.Event(), threading.Event()
def work(handle):
    handle.moe_context_create(-9, None)
    used.set()
    closed.wait()
for _ in range(3):
    handle = ctypes.CDLL(sys.argv[1])
    thread = threading.Thread(target=work, args=(handle,))
    thread.start()
    used.wait()
    _ctypes.dlclose(handle._handle)
    closed.set()
    thread.join()
print("alive")
"""
    assert output(sys.executable, "-c", code, _library.locate()) == "alive\n"


def test_binding_for_cpp_has_every_function():
    text = (ROOT / "bindings/cpp/moe.hpp").read_text()
    wrapped = set(re.findall(r"^MOE_HPP_\w+\((\w+),", text, flags=re.M))
    wrapped |= {name + "_workspace_size" for name in wrapped} | set(re.findall(r"\bmoe_(\w+)\(", text))
    # These two have no need of a wrapper, and the destroyers are the handles' own.
    wrapped |= {"version", "status_string", "context_destroy", "comm_destroy"}
    missing = {name.removeprefix("moe_") for name in _header.prototypes} - wrapped
    assert not missing


def test_installed_tree(tmp_path):
    output(ROOT / "scripts/install.sh", "/prefix", LIBMOE=_library.locate(), DESTDIR=str(tmp_path))
    tree = tmp_path / "prefix"
    version = libmoe.version()
    assert {str(path.relative_to(tree)) for path in tree.rglob("*") if not path.is_dir()} == {
        "include/moe.h", "include/moe.hpp", "include/moe_layer.hpp", "lib/libmoe.so", "lib/libmoe.so.0", f"lib/libmoe.so.{version}",
        "lib/cmake/moe/moe-config.cmake", "lib/cmake/moe/moe-config-version.cmake", "lib/pkgconfig/moe.pc",
    }
    assert os.readlink(tree / "lib/libmoe.so") == "libmoe.so.0" and os.readlink(tree / "lib/libmoe.so.0") == f"libmoe.so.{version}"
    texts = [path.read_text() for path in tree.rglob("*") if path.suffix in (".cmake", ".pc")]
    assert not any("/prefix" in text or str(tmp_path) in text or "@" in text for text in texts)
    assert any(f'"{version}"' in text for text in texts) and any(f"Version: {version}\n" in text for text in texts)


@pytest.mark.skipif(not CMAKE, reason="needs cmake")
def test_as_a_subdirectory(tmp_path):
    (tmp_path / "main.c").write_text("#include <moe.h>\nint main(void) { return moe_version() <= 0; }\n")
    (tmp_path / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.16)\nproject(user LANGUAGES C)\nadd_subdirectory({ROOT} moe)\n"
        "add_executable(user main.c)\ntarget_link_libraries(user PRIVATE moe::moe)\n")
    environment = {"LIBMOE": _library.locate()}
    output(CMAKE, "-S", tmp_path, "-B", tmp_path / "build", f"-DCMAKE_INSTALL_PREFIX={tmp_path / 'installed'}")
    output(CMAKE, "--build", tmp_path / "build", **environment)
    output(tmp_path / "build" / "user")
    output(CMAKE, "--install", tmp_path / "build")
    assert (tmp_path / "installed/lib/libmoe.so.0").exists()
