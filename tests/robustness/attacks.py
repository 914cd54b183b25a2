"""Small files that ask for much memory or time, each tried in a process that is measured.

    python -m tests.robustness.attacks [--only TEXT ...]     # try them and print the results
    python -m tests.robustness.attacks --build NAME FOLDER   # only write the files of one

An attack passes if the command ends with a documented exit code, at most one error line, no more
than MOST_SECONDS of processor time and no more than MOST_BYTES of memory beyond the bytes that the
files hold.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import struct_rusage
from typing import Any

# these fill the registry
from tests.robustness import attack_data, attack_models, attack_texts, markdown  # noqa: F401
from tests.robustness.attack_list import ATTACKS

MOST_SECONDS = 10.0  # of processor time
MOST_BYTES = 10**9
LIMIT_S = 300  # of waiting


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes
    ----------
    what
        The attack.
    code
        Exit code, negative for a signal.
    result
        Error line, or "accepted".
    seconds
        Processor time.
    peak_bytes
        Most resident memory.
    file_bytes
        Bytes of the files on the disk.
    ok
        Whether it passes.
    """

    what: str
    code: int
    result: str
    seconds: float
    peak_bytes: int
    file_bytes: int
    ok: bool


def try_attack(what: str, environment: dict[str, str]) -> Cost:
    """Build the files of an attack, and run its command."""
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        folder = Path(name).resolve()
        # in a process of its own: the memory of this one counts for those that it starts
        build = [sys.executable, "-m", "tests.robustness.attacks", "--build", what, str(folder)]
        done = subprocess.run(build, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        # files with holes hold only their blocks
        held = sum(p.lstat().st_blocks * 512 for p in folder.rglob("*") if p.is_file())
        command = [sys.executable, "-m", "onnxprune", *done.stdout.splitlines()]
        with (folder / "stderr").open("wb") as errors:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=errors
            )
            status, usage = _wait(process.pid)
        text = (folder / "stderr").read_text(errors="replace").replace(f"{folder}/", "")
        text = text.replace(str(folder), "FOLDER")
    code = os.waitstatus_to_exitcode(status)
    lines = [line for line in text.splitlines() if line.startswith("error[")]
    seconds = usage.ru_utime + usage.ru_stime
    peak = usage.ru_maxrss * 1024
    ends = code == 0 or (code in (1, 2, 3) and len(lines) == 1 and "internal" not in lines[0])
    ok = ends and "Traceback" not in text and seconds < MOST_SECONDS and peak - held < MOST_BYTES
    result = "accepted" if code == 0 else (lines or [text[-200:] or "nothing"])[0]
    return Cost(what, code, result, round(seconds, 1), peak, held, ok)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the section of the page."""
    columns = "files", "exit code", "memory", "processor time", "result"
    lines = ["## Small files that ask for much", "", *markdown.head("attack", *columns)]
    for row in rows:
        result = ("" if row["ok"] else "WRONG: ") + markdown.cell(row["result"])
        sizes = [f"{row[key] / 1e6:.1f} MB" for key in ("file_bytes", "peak_bytes")]
        cost = row["code"], sizes[1], f"{row['seconds']:.1f} s"
        lines.append(markdown.line(row["what"], sizes[0], *cost, result))
    return lines


def _wait(pid: int) -> tuple[int, struct_rusage]:
    """Return status and usage of a child, which is ended after LIMIT_S."""
    end = time.monotonic() + LIMIT_S
    while True:
        number, status, usage = os.wait4(pid, os.WNOHANG)
        if number:
            return status, usage
        if time.monotonic() > end:
            os.kill(pid, 9)
            _, status, usage = os.wait4(pid, 0)
            return status, usage
        time.sleep(0.02)


def main() -> None:
    """Parse the command line; build the files of one attack, or try attacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="parts of names")
    parser.add_argument("--build", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        what, folder = options.build
        print("\n".join(ATTACKS[what](Path(folder))))
        return
    for what in ATTACKS:
        if any(text in what for text in options.only):
            cost = try_attack(what, dict(os.environ))
            size = f"{cost.peak_bytes / 1e6:.0f} MB of {cost.file_bytes / 1e6:.1f}"
            print("ok   " if cost.ok else "WRONG", cost.what, f"{cost.seconds:.1f} s", size)
            print("      ", cost.code, cost.result[:300], flush=True)


if __name__ == "__main__":
    main()
