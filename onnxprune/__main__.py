"""Entry point of the command line and of `python -m onnxprune`."""

from __future__ import annotations

import os
import signal

# the module typing takes most of the time before the handlers are set
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_STOPPED = b"error[interrupted]: stopped; no output was written\n"


def main() -> NoReturn:
    """Run the command line.

    Its imports take longer than some commands. A signal that arrives during them ends the process
    with a sentence; afterwards the command line handles signals.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)
    from onnxprune.cli import main as run

    run()


def _stop(*_: Any) -> NoReturn:
    """End the process at once: nothing was written yet, and nothing has to be cleaned up."""
    os.write(2, _STOPPED)
    os._exit(130)


if __name__ == "__main__":
    main()
