"""Program of test_sensitivity.py: six jobs on a local cluster of two workers.

The fourth job ends its worker the first time.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, os.getcwd())

from onnxprune.search.workers import run_jobs


def dies_once(job: tuple[str, int]) -> int:
    """Return the square; job 3 ends its process the first time."""
    mark = Path(job[0]) / "died"
    if job[1] == 3 and not mark.exists():
        mark.touch()
        os._exit(1)
    return job[1] ** 2


if __name__ == "__main__":
    found = run_jobs(
        dies_once, [(sys.argv[1], i) for i in range(6)], workers=2, cluster=sys.argv[2]
    )
    print("RESULT", sorted(result for _, result in found))
