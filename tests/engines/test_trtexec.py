"""trtexec's command lines, against a stand-in that records them and writes its files."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from engine_nets import residual

from onnxprune.engines import trtexec
from onnxprune.engines.base import EngineOptions, fix_shapes, random_feeds, static_inputs
from onnxprune.engines.trtexec import (
    ENGINE,
    LocalTool,
    TrtExecModel,
    precision_flags,
    release,
    values,
)
from onnxprune.errors import EngineError

STAND_IN = """#!{python}
import json, re, sys
given = dict(a.partition("=")[::2] for a in sys.argv[1:])
with open({log!r}, "a") as log: print(json.dumps(sys.argv[1:]), file=log)
if "--help" in given:
    print("&&&& RUNNING TensorRT.trtexec [TensorRT v{version}]", {flags!r})
elif "{refuse}":
    print("[01/01/2026-00:00:00] [E] [TRT] {refuse}"); sys.exit(1)
else:
    row = dict(startEnqMs=0, h2dMs=0, computeMs=9.0, d2hMs=0, latencyMs=9.0, endToEndMs=9.0)
    count = int(given.get("--iterations", 1))
    rows = [dict(row, startEnqMs=i + 1, computeMs=2.0) for i in range(count)]
    layer = dict(
        name="n_c0 + n_b0 + n_r0", timeMs=0.5 * count, averageMs=0.5, percentage=100
    )
    contents = {{
        "--saveEngine": "engine",
        "--exportLayerInfo": json.dumps(dict(Layers=[layer["name"]], Bindings=[])),
        "--exportTimes": json.dumps([dict(row, computeMs=1.0)] + rows),
        "--exportProfile": json.dumps([dict(count=count), layer]),
        "--exportOutput": json.dumps([dict(name="y", dimensions="1x10", values=list(range(10)))]),
    }}
    for flag, text in contents.items():
        if flag in given: open(given[flag], "w").write(text)
"""
FLAGS_11 = (
    "--noTF32 --useCudaGraph --useSpinWait --noDataTransfers --profilingVerbosity --skipInference"
)
FLAGS_10 = "--fp16 --int8 --bf16 " + FLAGS_11


def stand_in(folder: Path, version: int = 101600, flags: str = FLAGS_10, refuse: str = "") -> Path:
    trtexec.help_text.cache_clear()
    path = folder / "trtexec"
    path.write_text(
        STAND_IN.format(
            python=sys.executable,
            log=str(folder / "log"),
            version=version,
            flags=flags,
            refuse=refuse,
        )
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def commands(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize(("flags", "expected"), [(FLAGS_10, ["--fp16"]), (FLAGS_11, [])])
def test_build_run_time_and_profile(flags: str, expected: list[str], tmp_path: Path) -> None:
    model = fix_shapes(residual(16), {})
    feeds = random_feeds(static_inputs(model, {}))
    program = stand_in(tmp_path, flags=flags)
    options = EngineOptions(precision="f16", cache=tmp_path / "cache")
    with TrtExecModel(LocalTool(str(program), options.cache), model, options) as compiled:
        assert np.array_equal(compiled.run(feeds)["y"], np.arange(10, dtype=np.float32)[None])
        assert compiled.sample(feeds, 3) == [2.0] * 3, "warm-up rows are dropped"
        (layer,) = compiled.profile(feeds, 2)
        assert (layer.nodes, layer.time_ms, layer.key) == (("n_c0", "n_b0", "n_r0"), 0.5, "c0")
        assert compiled.device_memory_bytes() == len("engine")
    _, built, ran, timed, profiled = commands(tmp_path)
    assert [flag for flag in built if flag in ("--fp16", "--int8", "--noTF32")] == expected
    assert (
        "--skipInference" in built
        and f"--timingCacheFile={tmp_path / 'cache' / 'trtexec.timing'}" in built
    )
    assert any(flag.startswith("--loadInputs='x':") for flag in ran)
    assert {"--useCudaGraph", "--useSpinWait", "--noDataTransfers"} <= set(timed)
    assert "--useCudaGraph" not in profiled


def test_refusal_is_trtexec_s_own_sentence(tmp_path: Path) -> None:
    program = stand_in(tmp_path, refuse="no importer for NoSuchOperator")
    with pytest.raises(
        EngineError, match="trtexec rejects the model: .*no importer for NoSuchOperator"
    ):
        TrtExecModel(LocalTool(str(program)), fix_shapes(residual(16), {}), EngineOptions())


@pytest.mark.parametrize(
    ("precision", "ten", "eleven"),
    [
        ("f32", ["--noTF32"], ["--noTF32"]),
        ("f16", ["--fp16"], []),
        ("int8", ["--int8", "--fp16"], []),
    ],
)
def test_precision_flags(precision: str, ten: list[str], eleven: list[str]) -> None:
    assert precision_flags(precision, FLAGS_10) == ten
    assert precision_flags(precision, FLAGS_11) == eleven


def test_bfloat16_without_its_flag_is_refused() -> None:
    assert precision_flags("bf16", FLAGS_10) == ["--bf16"]
    with pytest.raises(EngineError, match="bfloat16 graph"):
        precision_flags("bf16", FLAGS_11)


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("[TensorRT v8601]", "8.6.1"),
        ("[TensorRT v100300]", "10.3.0"),
        ("[TensorRT v110401]", "11.4.1"),
        ("", ""),
    ],
)
def test_release_of_the_banner(banner: str, version: str) -> None:
    assert release(f"&&&& RUNNING TensorRT.trtexec {banner} # trtexec --help") == version


def test_output_keeps_its_shape() -> None:
    assert values({"dimensions": "2x1x3", "values": list(range(6))}).shape == (2, 1, 3)
    assert values({"dimensions": "", "values": [1.0, 2.0]}).shape == (2,)


def test_without_the_program_or_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trtexec, "program", lambda: None)
    assert "trtexec program" in str(ENGINE.available()) and ENGINE.version() == ""
    monkeypatch.setattr(trtexec, "program", lambda: str(stand_in(tmp_path)))
    monkeypatch.setattr(trtexec, "has_gpu", lambda: False)
    assert "needs an NVIDIA GPU" in str(ENGINE.available())
    assert ENGINE.version() == "10.16.0"
