#!/usr/bin/env python3
"""Writes stamp.json beside the library: which commit and which trees it was built from.

    python3 scripts/stamp.py target/release

The GPU machine has no repository, so what is tested there is noted here, before.
"""

import json
import subprocess
import sys
from pathlib import Path


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "target/release")
    stamp = {
        "commit": git("rev-parse", "HEAD"),
        "trees": {name: git("rev-parse", f"HEAD:{name}") for name in ("kernels", "src/cuda")},
        "uncommitted": bool(git("status", "--porcelain", "--", "kernels", "src", "bindings", "tests")),
    }
    (folder / "stamp.json").write_text(json.dumps(stamp, indent=1) + "\n")
    print(json.dumps(stamp))


if __name__ == "__main__":
    main()
