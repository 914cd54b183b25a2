"""Run the commands of the recipes in docs/recipes, whose packages are no part of onnxprune.

usage: python tools/run_recipes.py [PAGE ...]        e.g.  python tools/run_recipes.py bert vit

Each page runs in a folder of its own with the files of `onnxprune demo --export .`, in the
environment of this interpreter. Blocks whose note says another reason not to run them are left out.
The exit status is 1 if a command fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "docs" / "recipes"
NOTE = "by tools/run_recipes.py"
LAST_LINES = 12  # of the output of a command that fails

sys.path.insert(0, str(ROOT / "tests"))
from documents import blocks, commands  # noqa: E402  # in tests/, as the pages are tested there

from onnxprune.demo.export import write_files  # noqa: E402


def run_page(page: Path, folder: Path) -> list[str]:
    """Run a page in a folder and print its commands; return those that fail."""
    write_files(folder)
    failed = []
    for block in blocks(page):
        if block.note == "file":
            (folder / block.value).write_text(block.text, encoding="utf-8")
        elif block.language == "console" and block.note == "not run" and block.value == NOTE:
            failed += [c.text for c in commands(block) if not succeeds(c.text, folder)]
    return failed


def succeeds(command: str, folder: Path) -> bool:
    """Run a command line in a folder; print its seconds, and its last lines if it fails."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    start = time.perf_counter()
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**os.environ, "PATH": path},
        encoding="utf-8",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    print(f"{time.perf_counter() - start:7.1f} s  {command}", flush=True)
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-LAST_LINES:]), flush=True)
    return done.returncode == 0


def main() -> None:
    """Run the given pages, by default all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(path.stem for path in RECIPES.glob("*.md") if path.stem != "index")
    parser.add_argument("pages", nargs="*", choices=[[], *names], default=[])
    failed = []
    for name in parser.parse_args().pages or names:
        print(name)
        with tempfile.TemporaryDirectory() as folder:
            failed += run_page(RECIPES / f"{name}.md", Path(folder))
    print(f"{len(failed)} commands failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
