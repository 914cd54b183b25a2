"""Connection to the agent (deploy/scripts/agent.py) on another machine, by ssh.

The agent's source is sent through the pipe of the ssh session, so that nothing is installed or
listens there. Requests, models, inputs and times take the same pipe.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from importlib import resources
from typing import Any

from onnxprune.errors import EngineError

LOCAL = "local"  # host whose agent runs here, without ssh
PROTOCOL = 2
CONNECT_S = 15
HELLO_S = 90.0  # a small board imports its runtimes slowly
ANSWER_S = 1800.0  # builders of engines may try kernels for long
MOST_BANNER = 200  # lines that a login script may print
SSH = "ONNXPRUNE_SSH"  # the ssh command, such as "ssh -p 2222 -i key"
PYTHON = "ONNXPRUNE_REMOTE_PYTHON"  # the interpreter there, such as ~/venv/bin/python
FACTS = ("machine", "host", "runtimes")  # what makes times comparable after a reconnection


class Dropped(Exception):
    """The connection ended during a request."""


class Connection:
    """An agent on a host, started when the first request is made.

    Attributes
    ----------
    host
        Name as for ssh, or "local".
    starts
        Number of agents that ended; models are valid for one of them.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the connection
        # reentrant: a request starts the agent, which begins with a request of its own
        self._lock = threading.RLock()
        self._late = False
        self._facts: dict[str, Any] | None = None

    def ask(self, command: str, data: bytes = b"", **values: Any) -> tuple[dict[str, Any], bytes]:
        """Return the agent's answer and its bytes.

        Raises
        ------
        EngineError
            The agent refuses the request or does not answer in time, or the host is another one
            than before.
        Dropped
            The connection ended.
        """
        with self._lock:
            if self._process is None:
                self._start()
            answer, payload = self._exchange({"command": command, **values}, data, ANSWER_S)
        if "error" in answer:
            raise EngineError("remote-refused", f"{self.host}: {answer['error']}")
        return answer, payload

    def hello(self) -> dict[str, Any]:
        """Return what the agent says about its machine, starting it again once."""
        with self._lock:
            for last in (False, True):
                if self._process is not None and self._facts is not None:
                    break
                try:
                    self._start()
                except Dropped as problem:
                    if last:
                        raise EngineError("remote-unreachable", str(problem)) from problem
            return dict(self._facts or {})

    def close(self) -> None:
        """End the agent."""
        process, self._process = self._process, None
        if process is None:
            return
        self.starts += 1  # at the end of one: the next is started only by a request
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int | None:
        """Process of ssh or of the local agent, None if there is none."""
        return None if self._process is None else self._process.pid

    def _start(self) -> None:
        """Start the agent's Python, send it the agent's source and check its machine."""
        source = agent_source()
        # one statement: the agent needs no file on the device
        code = f"import sys;exec(compile(sys.stdin.buffer.read({len(source)}),'agent','exec'))"
        if self.host == LOCAL:
            command = [sys.executable, "-c", code]
        else:
            options = ("-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}")
            alive = ("-o", "ServerAliveInterval=15")
            ssh = shlex.split(os.environ.get(SSH, "ssh"))
            # not quoted, so that the shell there expands ~ and variables
            python = os.environ.get(PYTHON, "python3")
            words = f"OMP_NUM_THREADS=1 {python} -c {shlex.quote(code)}"
            command = [*ssh, *options, *alive, "--", self.host, words]
        self._log.seek(0)
        self._log.truncate()
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
            )
        except OSError as problem:
            raise EngineError(
                "remote-unreachable", f"{command[0]} cannot be started: {problem.strerror}"
            ) from problem
        with contextlib.suppress(OSError):  # the first request reports why
            self._write(source)
        facts, _ = self._exchange({"command": "hello"}, b"", HELLO_S, banner=MOST_BANNER)
        self._check(facts)

    def _check(self, facts: dict[str, Any]) -> None:
        """Compare the facts of a new agent with those of the one before; EngineError if unequal."""
        if facts.get("protocol") != PROTOCOL:
            self.close()
            raise EngineError("remote-refused", f"{self.host} runs an agent of another version")
        known, self._facts = self._facts, facts
        changed = [key for key in FACTS if known is not None and known[key] != facts[key]]
        if known is not None and changed:
            before, after = (
                ", ".join([f["host"], f["machine"], *map(" ".join, f["runtimes"].items())])
                for f in (known, facts)
            )
            self.close()
            raise EngineError(
                "remote-void",
                f"{self.host} is another machine after the reconnection ({after}; before: "
                f"{before}): its times are void; repeat the measurement",
            )

    def _write(self, data: bytes) -> None:
        """Send bytes."""
        pipe = self._process.stdin if self._process is not None else None
        if pipe is None:
            raise BrokenPipeError
        pipe.write(data)
        pipe.flush()

    def _exchange(
        self, request: dict[str, Any], data: bytes, limit_s: float, banner: int = 0
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request and read its answer, after at most `banner` lines of other text.

        Raises
        ------
        EngineError
            The answer takes longer than the limit.
        Dropped
            The connection ended.
        """
        process = self._process
        if process is None or process.stdout is None:
            raise Dropped(f"{self.host}: the connection is closed")
        self._late = False
        timer = threading.Timer(limit_s, self._give_up, (process,))
        timer.daemon = True
        timer.start()
        try:
            header = json.dumps({**request, "bytes": len(data)}).encode()
            self._write(header + b"\n" + data)
            line = process.stdout.readline()
            # what a login script prints comes before the first answer
            while banner and line and not line.startswith(b'{"'):
                line, banner = process.stdout.readline(), banner - 1
            answer = json.loads(line)
            payload = process.stdout.read(answer["bytes"])
            if len(payload) != answer["bytes"]:
                raise EOFError
        # ValueError: an empty line
        except (OSError, EOFError, ValueError, KeyError, TypeError) as problem:
            self.close()
            if self._late:
                raise EngineError(
                    "remote-timeout",
                    f"{self.host} did not answer {request['command']} within {limit_s:g} s",
                ) from problem
            raise Dropped(self._describe_end(process, request["command"])) from problem
        finally:
            timer.cancel()
        return answer, payload

    def _give_up(self, process: subprocess.Popen[bytes]) -> None:
        """End a process that does not answer."""
        self._late = True
        process.kill()

    def _describe_end(self, process: subprocess.Popen[bytes], command: str) -> str:
        """Return which process ended during a request, how, and the end of its stderr."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        reason = f": {lines[-1][:300]}" if lines else ""
        program = "the agent" if self.host == LOCAL else "ssh"
        return (
            f"the connection to {self.host} ended during {command} "
            f"({program} exited with status {process.returncode}){reason}"
        )


def agent_source() -> bytes:
    """Return the agent's file."""
    # by importlib.resources: the package may be installed as an archive
    return resources.files("onnxprune.deploy.scripts").joinpath("agent.py").read_bytes()


_CONNECTIONS: dict[str, Connection] = {}


def connect(host: str) -> Connection:
    """Return the one connection of this process to a host."""
    if host not in _CONNECTIONS:
        _CONNECTIONS[host] = Connection(host)
        atexit.register(_CONNECTIONS[host].close)
    return _CONNECTIONS[host]
