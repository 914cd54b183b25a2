"""Engines on another machine: the agent as a plain process, and over ssh on the loopback."""

from __future__ import annotations

import errno
import getpass
import importlib
import json
import os
import pickle
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from engine_nets import residual
from test_trtexec import FLAGS_10, stand_in

from onnxprune.analysis.walk import analyze
from onnxprune.cli.app import app
from onnxprune.deploy.scripts import agent as agent_script
from onnxprune.engines import ENGINES, connection
from onnxprune.engines.base import DEFAULTS, EngineOptions, fix_shapes, random_feeds, static_inputs
from onnxprune.engines.bench import bench
from onnxprune.engines.connection import Connection, connect
from onnxprune.engines.cost.latency import Probe
from onnxprune.engines.measure import Schedule
from onnxprune.engines.remote import DeviceState, RemoteEngine, check_host, parse_remote_name
from onnxprune.errors import EngineError, UsageError
from onnxprune.run.target import Target

MODEL = fix_shapes(residual(16), {})
FEEDS = random_feeds(static_inputs(MODEL, {}))
SHORT = Schedule(seconds=0.0, warmup=1, min_rounds=3, max_rounds=3)
IDLE = {"mode": "0", "clocks_mhz": [], "temperatures": [61.0], "throttled": 4, "limited": 0}
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


@pytest.fixture(autouse=True, scope="module")
def close_connections() -> Iterator[None]:
    yield
    for host in list(connection._CONNECTIONS):
        forget(host)


def forget(host: str) -> None:
    """End the agent of a host; the next one may find other runtimes."""
    connection._CONNECTIONS.pop(host).close()


def script(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(body)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_outputs_times_and_layers_equal_those_of_the_plain_engine() -> None:
    engine = ENGINES.get("remote:local")
    with ENGINES.get("onnxruntime").compile(MODEL, DEFAULTS) as plain:
        expected = plain.run(FEEDS)
        layers = {layer.nodes for layer in plain.profile(FEEDS, 3) if layer.nodes}
    with engine.compile(MODEL, DEFAULTS) as first, engine.compile(MODEL, DEFAULTS) as second:
        assert first._handle != second._handle, "equal models are different compilations"
        for name, value in first.run(FEEDS).items():
            assert np.array_equal(value, expected[name])
        assert len(second.sample(FEEDS, 3)) == 3
        assert {layer.nodes for layer in second.profile(FEEDS, 3) if layer.nodes} == layers
        device = first.device_state()
        assert device is not None and device["host"] == socket.gethostname()
    assert engine.version().endswith(f"({os.uname().machine})")
    assert engine.channel_multiple() == ENGINES.get("onnxruntime").channel_multiple()
    with pytest.raises(EngineError, match="pass --precision f32 or int8"):
        engine.compile(MODEL, EngineOptions(precision="bf16"))
    with pytest.raises(EngineError, match="local: .*onnxruntime|local: "):
        connect("local").ask(
            "compile",
            b"no model",
            runtime="onnxruntime",
            options={"threads": 1, "level": "all", "precision": "f32", "outputs": []},
        )


def test_bench_and_a_latency_target_use_the_device() -> None:
    report = bench([MODEL, residual(8)], ["remote:local"], schedule=SHORT, layers=False)
    assert not report.failures and len(report.ratios["remote:local"]) == 1
    row = report.measurements[0].as_dict()
    assert row["peak_memory_bytes"] is None and row["difference"] < 1e-5
    assert row["device"]["machine"] == os.uname().machine
    analysis = analyze(residual(16))
    kept = {g.name: range(max(1, g.size // 2)) for g in analysis.groups}
    with Probe(ENGINES.get("remote:local"), analysis, schedule=SHORT) as probe:
        assert probe(kept) > 0 and probe.measured == 1
    target = Target.parse("latency.remote:pi@10.0.0.7/openvino=1.5x")
    assert target.engine == "remote:pi@10.0.0.7/openvino"


def test_a_killed_agent_is_started_again_with_the_same_result() -> None:
    engine = ENGINES.get("remote:local")
    with engine.compile(MODEL, DEFAULTS) as compiled:
        expected = compiled.run(FEEDS)
        link = connect("local")
        killed = link.pid
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        for name, value in compiled.run(FEEDS).items():
            assert np.array_equal(value, expected[name])
        assert link.pid != killed
        # times of two machines are not comparable
        assert link._facts is not None
        link._facts = {**link._facts, "machine": "sparc64"}
        os.kill(link.pid or 0, signal.SIGKILL)
        with pytest.raises(EngineError, match="local is another machine.*sparc64.*void"):
            compiled.run(FEEDS)


def test_a_device_that_is_not_reached_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No program, no login, an agent that ends or hangs; a login script may print a banner."""
    monkeypatch.setenv(connection.SSH, str(tmp_path / "missing"))
    with pytest.raises(EngineError, match="missing cannot be started: No such file"):
        Connection("pi").hello()
    denied = script(tmp_path, "denied", "#!/bin/sh\necho 'Permission denied' >&2; exit 255\n")
    monkeypatch.setenv(connection.SSH, denied)
    reason = RemoteEngine("pi", "openvino", "remote:pi/openvino").available()
    assert reason is not None and "status 255): Permission denied; check" in reason
    hanging = script(tmp_path, "hanging", "#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setenv(connection.SSH, hanging)
    monkeypatch.setattr(connection, "HELLO_S", 0.1)
    with pytest.raises(EngineError, match=r"pi did not answer hello within 0.1 s"):
        Connection("pi").hello()
    monkeypatch.undo()
    banner = '#!/bin/sh\necho "Welcome to pi"\nfor last; do :; done\nexec sh -c "$last"\n'
    monkeypatch.setenv(connection.SSH, script(tmp_path, "banner", banner) + " -p 2222")
    monkeypatch.setenv(connection.PYTHON, f"{sys.executable} -S")
    link = Connection("pi")
    assert link.hello()["runtimes"] == {}, "without packages there is no runtime"
    link.close()
    reason = RemoteEngine("pi", "openvino", "remote:pi/openvino").available()
    assert reason is not None and "cannot load openvino (found: none)" in reason
    forget("pi")


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"mode": "2"}, "power mode of pi changed during the measurement \\('0' to '2'\\).*void"),
        ({"throttled": 5}, "pi throttled its clock.*61 degrees C.*void"),
        ({"limited": 4}, "pi throttled its clock.*void"),
    ],
)
def test_a_changed_state_makes_times_void(after: dict[str, Any], message: str) -> None:
    state = DeviceState(Connection("pi"))
    state.check([IDLE, IDLE])
    with pytest.raises(EngineError, match=message):
        state.check([IDLE, {**IDLE, **after}])
    # a mode that changed between two blocks
    if "mode" in after:
        with pytest.raises(EngineError, match=message):
            state.check([{**IDLE, **after}] * 2)


def test_state_of_boards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "pmode": "pmode:0003 fmode:fanNull\n",
        "oc1_event_cnt": "3\n",
        "get_throttled": "50005\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(agent_script, "JETSON_MODE", str(tmp_path / "pmode"))
    monkeypatch.setattr(agent_script, "EVENTS", (str(tmp_path / "oc*_event_cnt"),))
    monkeypatch.setattr(agent_script, "PI_FLAGS", str(tmp_path / "get_throttled"))
    state = agent_script.read_state()
    assert state["mode"] == "pmode:0003 fmode:fanNull" and state["throttled"] == 3
    # the upper bits say what happened since the start
    assert state["limited"] == 5


def test_full_disk_and_broken_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_script.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    helper = agent_script.Agent()

    def full(path: str, mode: str = "r", **_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(agent_script, "open", full, raising=False)
    request = {"command": "compile", "runtime": "onnxruntime", "options": {}}
    with pytest.raises(agent_script.Refused, match="cannot write 3 MB to .*: No space left"):
        helper.answer(request, bytes(2_500_000))
    monkeypatch.undo()

    def foreign(name: str) -> Any:
        raise ImportError("onnxruntime.so: wrong ELF class: ELFCLASS64\nmore")

    monkeypatch.setattr(agent_script.importlib, "import_module", foreign)
    found, broken = agent_script.find_runtimes()
    assert "onnxruntime" not in found
    assert broken["onnxruntime"] == "onnxruntime.so: wrong ELF class: ELFCLASS64"
    with pytest.raises(agent_script.Refused, match="is not there; .*wrong ELF class"):
        agent_script.Agent().answer(request, b"")


def test_tensorrt_of_a_device_by_its_trtexec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, flags=FLAGS_10)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    forget("local")
    engine = ENGINES.get("remote:local/tensorrt")
    with engine.compile(MODEL, EngineOptions(precision="f16")) as compiled:
        assert np.array_equal(compiled.run(FEEDS)["y"], np.arange(10, dtype=np.float32)[None])
        assert compiled.sample(FEEDS, 3) == [2.0] * 3
        (layer,) = compiled.profile(FEEDS, 2)
        assert layer.nodes == ("n_c0", "n_b0", "n_r0")
        assert compiled.device_memory_bytes() == len("engine")
        os.kill(connect("local").pid or 0, signal.SIGKILL)
        assert compiled.sample(FEEDS, 2) == [2.0] * 2
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    builds = [line for line in lines if any(flag.startswith("--onnx") for flag in line)]
    assert len(builds) == 2, "the engine is built again after the drop"
    assert any(flag.startswith("--timingCacheFile=") for flag in builds[0])
    forget("local")


FORKING = """
import multiprocessing, os, signal, time
from {package} import {module} as module

class Forking:
    def answer(self, *_):
        # waits for the lock of stdin at its start
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
        process.start()
        os.kill(os.getpid(), signal.SIGKILL)

module.{name} = Forking
module.main()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("package", "module", "name", "request_bytes"),
    [
        ("onnxprune.deploy.scripts", "agent", "Agent", b'{"command": "time"}\n'),
        ("onnxprune.engines", "worker", "_Child", pickle.dumps(("run", ()))),
    ],
)
def test_a_process_that_a_runtime_forks_does_not_hold_the_connection(
    package: str, module: str, name: str, request_bytes: bytes
) -> None:
    """OpenVINO's telemetry forks one in a thread, which outlives a killed agent."""
    code = FORKING.format(package=package, module=module, name=name)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        output, _ = process.communicate(request_bytes, timeout=10)
    assert output == b"" and process.returncode == -signal.SIGKILL


def test_names() -> None:
    engine = parse_remote_name("remote:pi@board.local/openvino")
    assert engine is not None and (engine.host, engine.runtime) == ("pi@board.local", "openvino")
    assert parse_remote_name("onnxruntime") is None
    for name in ("remote:", "remote:-oProxyCommand=x", "remote:a b", "remote:h/"):
        with pytest.raises(UsageError, match="names no host"):
            parse_remote_name(name)
    with pytest.raises(UsageError, match="unknown runtime 'openvin'; did you mean 'openvino'"):
        ENGINES.get("remote:h/openvin")
    with pytest.raises(UsageError, match="write USER@HOST"):
        check_host("h/openvino")


def test_agent_command(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["agent", "local"])
    assert shown.exit_code == 0 and "remote:local/onnxruntime" in shown.output
    path = tmp_path / "agent.py"
    assert CliRunner().invoke(app, ["agent", "-o", str(path)]).exit_code == 0
    printed = CliRunner().invoke(app, ["agent"])
    assert printed.stdout.encode() == path.read_bytes() == connection.agent_source()
    done = subprocess.run(
        [sys.executable, "-S", str(path), "--facts"], capture_output=True, check=True, timeout=60
    )
    assert json.loads(done.stdout)["runtimes"] == {}


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An sshd on the loopback with a key and a configuration of its own; yields USER@HOST."""
    if not Path(SSHD).is_file() or shutil.which("ssh-keygen") is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    for name in ("host", "user"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    (tmp_path / "authorized").write_bytes((tmp_path / "user.pub").read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path / 'host'}\n"
        f"AuthorizedKeysFile {tmp_path / 'authorized'}\nPidFile none\nStrictModes no\n"
        "UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(tmp_path / "config")], stderr=log)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None:
                pytest.skip(f"sshd does not start: {(tmp_path / 'log').read_text().strip()}")
            time.sleep(0.05)
        monkeypatch.setenv(
            connection.SSH,
            f"ssh -F none -p {port} -i {tmp_path / 'user'} -o IdentitiesOnly=yes "
            f"-o StrictHostKeyChecking=no -o UserKnownHostsFile={tmp_path / 'known'}",
        )
        monkeypatch.setenv(connection.PYTHON, sys.executable)
        host = f"{getpass.getuser()}@127.0.0.1"
        yield host
        forget(host)
    finally:
        server.terminate()
        server.wait(timeout=10)


def test_over_ssh(ssh: str) -> None:
    engine = ENGINES.get(f"remote:{ssh}")
    with engine.compile(MODEL, DEFAULTS) as compiled:
        expected = compiled.run(FEEDS)
        os.kill(connect(ssh).pid or 0, signal.SIGKILL)
        for name, value in compiled.run(FEEDS).items():
            assert np.array_equal(value, expected[name])
        assert len(compiled.sample(FEEDS, 2)) == 2
    if importlib.util.find_spec("openvino") is None:
        return
    with ENGINES.get(f"remote:{ssh}/openvino").compile(MODEL, DEFAULTS) as compiled:
        assert np.allclose(compiled.run(FEEDS)["y"], expected["y"], rtol=1e-3, atol=1e-4)
        assert any("n_c0" in layer.nodes for layer in compiled.profile(FEEDS, 2))
