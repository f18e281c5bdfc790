"""The wheel's version, from Cargo.toml, and the two files that come from outside this folder: moe.h and libmoe.so."""

import os
import re
import sysconfig
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

SOURCES = Path(__file__).resolve().parents[2]


class Version(MetadataHookInterface):
    def update(self, metadata):
        manifest = (SOURCES / "Cargo.toml").read_text()
        metadata["version"] = re.search(r'^version = "(.+)"$', manifest, flags=re.M).group(1)


class Library(BuildHookInterface):
    def initialize(self, version, build_data):
        # An editable install finds both in the source tree.
        if version == "editable":
            return
        library = Path(os.environ.get("LIBMOE", SOURCES / "target" / "release" / "libmoe.so"))
        if not library.exists():
            raise FileNotFoundError(f"{library}: build it with `cargo build --release`, or set LIBMOE to its path")
        build_data["force_include"][str(SOURCES / "include" / "moe.h")] = "libmoe/moe.h"
        build_data["force_include"][str(library)] = "libmoe/libmoe.so"
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-" + re.sub(r"[^\w]", "_", sysconfig.get_platform())
