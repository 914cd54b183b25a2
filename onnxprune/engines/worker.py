"""Run a compiled model in a separate process.

The process has its own peak memory, its threads can be pinned, and a crash becomes an EngineError.
The parent sends pickled (command, arguments) to the child's stdin and reads pickled answers; both
ends are in this file. What the engine prints goes to stderr, whose end is quoted in errors.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from onnxprune.engines import ENGINES
from onnxprune.engines.base import Compiled, EngineOptions, LayerTime, Source
from onnxprune.errors import EngineError, OnnxpruneError
from onnxprune.ir.io import Model, save
from onnxprune.scratch import Scratch

_QUOTED = 300  # characters of stderr or of an exception in an error
CHECK_S = 1.0  # between looks at the state of a child that has to answer
# looks at a child that is stopped (SIGSTOP) before it is ended; not seconds, because a terminal may
# stop this process as well
MOST_STOPS = 10
ANSWER_LIMIT_S = 7200.0  # builders of engines may try kernels for an hour


class Worker(Compiled):
    """An engine's compiled model in a child process.

    Parameters
    ----------
    engine
        Name in ENGINES.
    source
        The model; a Model is written to a temporary file.

    Raises
    ------
    EngineError
        The engine is not available, rejects the model, or the process ended; the error names the
        signal and quotes the end of stderr.
    """

    def __init__(self, engine: str, source: Source, options: EngineOptions) -> None:
        self.engine = engine
        self._folder = Scratch()
        self._fed: int | None = None
        self._reason = ""  # why the child was ended
        # a file, because a pipe that nobody reads would block the child
        self._log = open(Path(self._folder.name) / "stderr", "w+b")  # noqa: SIM115 - see close()
        path = self._write(source)
        # the child must import the same onnxprune as this process
        package = str(Path(__file__).resolve().parents[2])
        environment = {
            **os.environ,
            # native libraries read it once, when they are loaded
            "OMP_NUM_THREADS": str(options.threads),
            "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        }
        self._process = subprocess.Popen(
            # a new interpreter instead of a fork, which would share the parent's threads and memory
            [sys.executable, "-m", "onnxprune.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        try:
            self.outputs: tuple[str, ...] = self._ask("compile", engine, path, options)
        # also on an interrupt: the child must not outlive the caller
        except BaseException:
            self.close()
            raise

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one inference."""
        self._feed(feeds)
        return self._ask("run")

    def sample(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Time inferences inside the child, without the cost of the pipe."""
        return [wall_ms for wall_ms, _ in self.sample_clocks(feeds, count)]

    def sample_clocks(
        self, feeds: Mapping[str, np.ndarray], count: int
    ) -> list[tuple[float, float]]:
        """Time inferences inside the child, without the cost of the pipe."""
        self._feed(feeds)
        return self._ask("sample_clocks", count)

    def profile(self, feeds: Mapping[str, np.ndarray], count: int) -> tuple[LayerTime, ...]:
        """Return the time per kernel."""
        self._feed(feeds)
        return self._ask("profile", count)

    def device_memory_bytes(self) -> int | None:
        """Return the memory on the accelerator."""
        return self._ask("device_memory")

    def notes(self) -> tuple[str, ...]:
        """Return what makes the times less comparable."""
        return tuple(self._ask("notes"))

    def memory_bytes(self) -> tuple[int, int] | None:
        """Return (peak resident size of the child, its size before the model was compiled).

        None if the system does not report it.
        """
        return self._ask("memory")

    def close(self) -> None:
        """End the child and remove its files."""
        # a closed stdin ends the child's loop
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=5)
        # an engine may hang in native code
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._folder.cleanup()

    def _write(self, source: Source) -> Path:
        """Return the path of the model; a Model is written to the worker's folder."""
        if not isinstance(source, Model):
            return Path(source).resolve()
        path = Path(self._folder.name) / "model.onnx"
        save(source, path)
        return path

    def _feed(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Send inputs, unless they are those of the last call."""
        # inputs are large; the child keeps those of the last call
        if self._fed != id(feeds):
            self._ask("feed", dict(feeds))
            self._fed = id(feeds)
            self._feeds = feeds  # kept alive, so that no other object gets its id

    def _ask(self, command: str, *arguments: Any) -> Any:
        """Return the child's answer; EngineError if it failed or the process ended."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise EngineError("engine-crashed", f"{self.engine}: the process has no pipes")
        try:
            with self._watched():
                _send(stdin, (command, arguments))
                kind, value = pickle.load(stdout)
        except (OSError, EOFError, pickle.UnpicklingError, ValueError) as problem:
            # the watcher ended the child: its reason explains the broken pipe
            if self._reason:
                raise EngineError(
                    "engine-timeout",
                    f"{self.engine} {self._reason} during {command}; its process "
                    f"{self._process.pid} was ended",
                ) from problem
            raise EngineError(
                "engine-crashed",
                f"{self.engine} ended {self._describe_end()} during {command}{self._quote_log()}",
            ) from problem
        if kind == "error":
            raise EngineError(*value)
        return value

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """End the child if it is stopped or does not answer while the block waits for it."""
        done = threading.Event()
        # a thread, because reading from a pipe has no limit of time
        thread = threading.Thread(target=self._watch, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _watch(self, done: threading.Event) -> None:
        """Look at the child until `done` is set."""
        stops, start = 0, time.monotonic()
        while not done.wait(CHECK_S):
            # a stop that ended in between, such as by a debugger, starts the count again
            stops = stops + 1 if _is_stopped(self._process.pid) else 0
            if stops >= MOST_STOPS:
                self._reason = "was stopped (SIGSTOP)"
            elif time.monotonic() - start > ANSWER_LIMIT_S:
                self._reason = f"did not answer within {ANSWER_LIMIT_S:g} s"
            if self._reason:
                self._process.kill()
                return

    def _describe_end(self) -> str:
        """Return the signal or exit status of the child."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5)
        # a negative code is a signal, such as SIGSEGV in native code
        code = self._process.returncode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"by {signal.Signals(-code).name}"
        return f"with status {code}"

    def _quote_log(self) -> str:
        """Return the end of the child's stderr for a message, "" if it is empty."""
        self._log.seek(0)
        text = " ".join(self._log.read().decode(errors="replace").split())
        return f": {text[-_QUOTED:]}" if text else ""


def _send(pipe: IO[bytes], value: Any) -> None:
    """Write a pickled value."""
    pipe.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
    pipe.flush()


class _Child:
    """State of the child process between commands."""

    def __init__(self) -> None:
        self.compiled: Compiled | None = None
        self.feeds: dict[str, np.ndarray] = {}
        self.before_bytes = 0

    def answer(self, command: str, arguments: tuple[Any, ...]) -> Any:
        """Carry out a command and return its result."""
        if command == "compile":
            return self._compile(*arguments)
        if command == "feed":
            self.feeds = arguments[0]
            return None
        if command == "memory":
            peak = _read_status_bytes("VmHWM")
            return None if peak is None else (peak, self.before_bytes)
        compiled = self.compiled
        if compiled is None:
            raise EngineError("engine-protocol", f"{command} before compile")
        if command == "run":
            return compiled.run(self.feeds)
        if command == "sample_clocks":
            return compiled.sample_clocks(self.feeds, *arguments)
        if command == "profile":
            return compiled.profile(self.feeds, *arguments)
        if command == "notes":
            return compiled.notes()
        if command == "device_memory":
            return compiled.device_memory_bytes()
        raise EngineError("engine-protocol", f"unknown command {command!r}")

    def _compile(self, name: str, path: Path, options: EngineOptions) -> tuple[str, ...]:
        """Pin the process, compile the model and return the names of its outputs."""
        # without the call, as on macOS, the process stays unpinned
        if options.cores and hasattr(os, "sched_setaffinity"):
            # before the library starts its threads, which inherit the CPUs
            os.sched_setaffinity(0, options.cores)
        engine = ENGINES.get(name)
        if library := getattr(engine, "library", ""):
            importlib.import_module(library)  # its size must not count as the model's
        self.before_bytes = _read_status_bytes("VmRSS") or 0
        # an engine that runs models in a worker must not start another one
        compile_model = getattr(engine, "compile_here", engine.compile)
        self.compiled = compile_model(path, options)
        return self.compiled.outputs


def _read_status_bytes(key: str) -> int | None:
    """Return an entry of /proc/self/status in bytes; None on other systems.

    VmHWM is that of this program; getrusage's peak includes the parent's size at the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), None)


def _is_stopped(pid: int) -> bool:
    """Return whether a process is stopped by a signal; False on systems without /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    # the name of the program, in parentheses, may hold anything
    return text.rpartition(")")[2].split()[:1] in (["T"], ["t"])


def _to_error(command: str, problem: Exception) -> tuple[str, str]:
    """Return (code, message) of an exception; engines raise any type."""
    # the code stays the same as without a worker
    if isinstance(problem, OnnxpruneError):
        return problem.code, problem.message
    reason = f"{type(problem).__name__}: {str(problem).strip()[:_QUOTED]}"
    return "engine-failed", f"{command} failed: {reason}"


def _leave_pipes(answers: int) -> None:
    """Close the pipes in a process that an engine has forked, which may outlive the worker."""
    # as the agent does, which imports nothing and is imported by nothing
    for pipe in (0, answers):
        os.close(pipe)
    # its lock, held by the worker while it reads, is never released there
    sys.stdin = None  # type: ignore[assignment]  # as in a process without stdin


def main() -> None:
    """Answer commands until stdin closes."""
    # the answers get a descriptor of their own
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what the engine prints must not mix with the answers
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _leave_pipes(out.fileno()))
    child = _Child()
    while True:
        try:
            command, arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            _send(out, ("ok", child.answer(command, arguments)))
        # the child goes on after a failure: the next command may succeed
        except Exception as problem:
            _send(out, ("error", _to_error(command, problem)))


if __name__ == "__main__":
    main()
