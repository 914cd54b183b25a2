"""A compiled model in a process of its own: its peak memory is its own, its threads can be pinned, and a crash is an error, not the end.

The parent sends pickled (verb, arguments) to the child's stdin and reads pickled answers; both ends are this file. What the engine prints
goes to stderr, of which the last lines are kept for the error message.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxprune.engines import ENGINES
from onnxprune.engines.base import Compiled, EngineOptions, LayerTime, Source
from onnxprune.errors import EngineError, OnnxpruneError
from onnxprune.ir.io import Model, save

_LAST_WORDS = 300


class Worker(Compiled):
    """An engine's compiled model in a child process.

    Parameters
    ----------
    engine
        Name in ENGINES.
    source
        The model; one that was made in memory goes through a temporary file.

    Raises
    ------
    EngineError
        The engine is missing, refuses the model, or the process ended (the signal and its last words are named).
    """

    def __init__(self, engine: str, source: Source, options: EngineOptions) -> None:
        self.engine = engine
        self._folder = tempfile.TemporaryDirectory(prefix="onnxprune-")
        self._fed: int | None = None
        self._log = open(Path(self._folder.name) / "stderr", "w+b")  # noqa: SIM115 - closed in close()
        path = self._path(source)
        package = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(options.threads),
            "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "onnxprune.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        try:
            self.outputs: tuple[str, ...] = self._ask("compile", engine, path, options)
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._feed(feeds)
        return self._ask("run")

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Timed inside of the child: what the pipe costs is not in it."""
        self._feed(feeds)
        return self._ask("sample", count)

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        self._feed(feeds)
        return self._ask("profile", count)

    def device_memory_bytes(self) -> int | None:
        return self._ask("device_memory")

    def memory_bytes(self) -> tuple[int, int] | None:
        """(peak resident size of the child, what it had before the model was compiled); None where the system does not tell."""
        return self._ask("memory")

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._folder.cleanup()

    def _path(self, source: Source) -> Path:
        if not isinstance(source, Model):
            return Path(source).resolve()
        path = Path(self._folder.name) / "model.onnx"
        save(source, path)
        return path

    def _feed(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Send inputs once, however often they are used."""
        if self._fed != id(feeds):
            self._ask("feed", dict(feeds))
            self._fed = id(feeds)
            self._feeds = feeds  # kept alive, so that the id stays theirs

    def _ask(self, verb: str, *arguments: Any) -> Any:
        """The child's answer; EngineError where it failed or died."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise EngineError("engine-crashed", f"{self.engine}: the process has no pipes")
        try:
            _send(stdin, (verb, arguments))
            kind, value = pickle.load(stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError) as problem:
            raise EngineError(
                "engine-crashed", f"{self.engine} ended {self._how()} during {verb}{self._words()}"
            ) from problem
        if kind == "error":
            raise EngineError(*value)
        return value

    def _how(self) -> str:
        """By which signal or status the child ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        code = self._process.returncode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"by {signal.Signals(-code).name}"
        return f"with status {code}"

    def _words(self) -> str:
        """The last it wrote to stderr."""
        self._log.seek(0)
        text = " ".join(self._log.read().decode(errors="replace").split())
        return f": {text[-_LAST_WORDS:]}" if text else ""


def _send(pipe: IO[bytes], value: Any) -> None:
    pipe.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
    pipe.flush()


class _Child:
    """What the child process remembers between questions."""

    def __init__(self) -> None:
        self.compiled: Compiled | None = None
        self.feeds: dict[str, np.ndarray] = {}
        self.before_bytes = 0

    def answer(self, verb: str, arguments: tuple[Any, ...]) -> Any:
        if verb == "compile":
            return self._compile(*arguments)
        if verb == "feed":
            self.feeds = arguments[0]
            return None
        if verb == "memory":
            peak = _status_bytes("VmHWM")
            return None if peak is None else (peak, self.before_bytes)
        compiled = self.compiled
        if compiled is None:
            raise EngineError("engine-protocol", f"{verb} before compile")
        if verb == "run":
            return compiled.run(self.feeds)
        if verb == "sample":
            return compiled.sample(self.feeds, *arguments)
        if verb == "profile":
            return compiled.profile(self.feeds, *arguments)
        if verb == "device_memory":
            return compiled.device_memory_bytes()
        raise EngineError("engine-protocol", f"unknown verb {verb!r}")

    def _compile(self, name: str, path: Path, options: EngineOptions) -> tuple[str, ...]:
        if options.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, options.cores)
        engine = ENGINES.get(name)
        if library := getattr(engine, "library", ""):
            importlib.import_module(library)  # so that its size is not counted as the model's
        self.before_bytes = _status_bytes("VmRSS") or 0
        here = getattr(
            engine, "compile_here", engine.compile
        )  # an engine that isolates itself is already isolated
        self.compiled = here(path, options)
        return self.compiled.outputs


def _status_bytes(key: str) -> int | None:
    """A line of /proc/self/status (kB there); VmHWM starts anew with each program, unlike getrusage's figure."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)


def main() -> None:
    """Answer questions until stdin closes."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the engine prints must not end up among the answers
    child = _Child()
    while True:
        try:
            verb, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            _send(out, ("ok", child.answer(verb, arguments)))
        except OnnxpruneError as problem:
            _send(out, ("error", (problem.code, problem.message)))
        except Exception as problem:  # noqa: BLE001 - engines raise what they like; the parent gets one sentence
            _send(
                out,
                (
                    "error",
                    (
                        "engine-failed",
                        f"{verb} failed: {type(problem).__name__}: {str(problem).strip()[:_LAST_WORDS]}",
                    ),
                ),
            )


if __name__ == "__main__":
    main()
