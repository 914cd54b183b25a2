"""Tables of layer times: the bundle that measures them, and the latency that they predict."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import stubs
from click.testing import CliRunner
from engine_nets import residual

from onnxprune.analysis.walk import analyze
from onnxprune.cli.app import app
from onnxprune.deploy.handoff import handoff
from onnxprune.deploy.layers import INDEX, list_candidates, write_table
from onnxprune.engines import ENGINES
from onnxprune.engines.base import DEFAULTS, EngineOptions, fix_shapes, random_feeds, static_inputs
from onnxprune.engines.cost.latency import Probe
from onnxprune.engines.cost.layers import LayerSpec
from onnxprune.engines.cost.table import (
    TableModel,
    list_specs,
    make_table,
    read_table,
    to_plain,
)
from onnxprune.errors import DataError, EngineError, UsageError
from onnxprune.files import write_json
from onnxprune.ir.io import load, save
from onnxprune.run.target import Target

TRTEXEC = """
given = dict(a.partition("=")[::2] for a in args)
if "--help" in given:
    print("--onnx --fp16 --skipInference --useSpinWait")
if "--saveEngine" in given:
    size = pathlib.Path(given["--onnx"]).stat().st_size
    pathlib.Path(given["--saveEngine"]).write_text(str(size))
if "--exportTimes" in given:
    size = float(pathlib.Path(given["--loadEngine"]).read_text())
    row = dict(startEnqMs=0, h2dMs=0, computeMs=size, d2hMs=0, latencyMs=size)
    pathlib.Path(given["--exportTimes"]).write_text(json.dumps([row]))
"""
MODEL = residual(16)
ANALYSIS = analyze(MODEL)


def cost(spec: LayerSpec) -> float:
    """Return a time that is linear in both widths."""
    return 1e-4 * spec.weight[0] * (spec.weight[1] + 2)


def specs_of(width: int) -> dict[str, LayerSpec]:
    """Return the layers of the network of a width, with a batch of 1."""
    return list_specs(fix_shapes(residual(width), {}))


def ideal_table(multiple: int = 8) -> object:
    """Return the table of a device whose whole models take 1.2 times their layers and 0.1 ms."""
    layers = [(spec, cost(spec)) for spec in dict.fromkeys(list_candidates(ANALYSIS, multiple))]
    models = {}
    for width in (16, 12, 8):
        specs = list(specs_of(width).values())
        models[str(width)] = (specs, 0.1 + 1.2 * sum(map(cost, specs)))
    facts = {"host": "board", "runtime": "onnxruntime", "precision": "f32", "threads": 1}
    return make_table(layers, models, multiple, facts)


def test_a_table_predicts_layers_and_models(tmp_path: Path) -> None:
    path = tmp_path / "board.latency.json"
    write_json(path, to_plain(ideal_table(4)))
    engine = ENGINES.get(f"table:{path}")
    table = read_table(path)
    assert engine.available() is None and engine.channel_multiple() == 4
    assert table.error < 1e-3 and table.sum_error > 0.1, "the true map is linear"
    for width in (16, 12, 8):
        with engine.compile(residual(width), DEFAULTS) as compiled:
            specs = specs_of(width).values()
            assert compiled.sample({}, 2) == pytest.approx([0.1 + 1.2 * sum(map(cost, specs))] * 2)
            layers = {layer.key: layer.time_ms for layer in compiled.profile({}, 1)}
            assert layers["c1"] == pytest.approx(cost(specs_of(width)["n_c1"]))
            (note,) = compiled.notes()
            assert "calibrated by 3 of them" in note and "error of 0.0%" in note
    # widths between two multiples take as long as the upper one
    kept = {group.name: range(11) for group in ANALYSIS.groups}
    with Probe(engine, ANALYSIS) as probe:
        assert probe.noise == 0
        assert probe(kept) == pytest.approx(0.1 + 1.2 * sum(map(cost, specs_of(12).values())))
    feeds = random_feeds(static_inputs(MODEL, {}))
    with engine.compile(MODEL, DEFAULTS) as compiled:
        assert compiled.run(feeds)["y"].shape == (1, 10)
    assert Target.parse(f"latency.table:{path}=1.5x").engine == f"table:{path}"


def test_what_a_table_cannot_answer_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "board.latency.json"
    engine = ENGINES.get(f"table:{path}")
    reason = engine.available()
    assert reason is not None and "board.latency.json cannot be read" in reason
    write_json(path, to_plain(ideal_table()))
    engine = ENGINES.get(f"table:{path}")
    with pytest.raises(EngineError, match="has no Conv with weight .* on an input .*--layers"):
        engine.compile(residual(16, size=20), DEFAULTS)
    with pytest.raises(EngineError, match="measured with --precision f32, not f16"):
        engine.compile(MODEL, EngineOptions(precision="f16"))
    with pytest.raises(EngineError, match="measured with --bench-threads 1, not 2"):
        engine.compile(MODEL, EngineOptions(threads=2))
    with pytest.raises(UsageError, match="names no file"):
        ENGINES.get("table:")
    for text in ("{", "[]", '{"format": 2}', '{"format": 1, "layers": [], "models": []}'):
        path.write_text(text)
        with pytest.raises(DataError, match="is no table of latencies"):
            read_table(path)


def test_the_bundle_times_layers_on_this_machine(tmp_path: Path) -> None:
    """The bundle runs with Python alone; its table goes through the commands."""
    save(residual(8), tmp_path / "m.onnx")
    bundle = tmp_path / "bundle"
    call = ["handoff", str(tmp_path / "m.onnx"), "--to", "remote", "--layers", "-o", str(bundle)]
    done = CliRunner().invoke(app, [*call, "--option", "rounds=2"])
    assert done.exit_code == 0, done.output
    index = json.loads((bundle / INDEX).read_text())
    assert index["multiple"] == 8 and len(index["models"]) == 1, "there is no smaller multiple"
    ran = stubs.run(bundle, tmp_path / "bin")
    assert ran.returncode == 0, ran.stderr
    collected = CliRunner().invoke(app, ["bench", "--collect", str(bundle)])
    assert collected.exit_code == 0 and "latency.table:" in collected.output
    table = read_table(tmp_path / "bundle.latency.json")
    assert table.facts["runtime"] == "onnxruntime" and len(table.facts["model_sha256"]) == 64
    with ENGINES.get(f"table:{tmp_path / 'bundle.latency.json'}").compile(
        residual(8), DEFAULTS
    ) as compiled:
        # a sum of layers times a factor: equal up to rounding
        assert compiled.sample({}, 1) == [pytest.approx(table.anchors[-1].whole_ms)]
    (bundle / "results" / "layer_times.json").write_text('{"times_ms": {}}')
    with pytest.raises(DataError, match="times of layers are invalid"):
        write_table(bundle, tmp_path / "x.json")


def test_layers_of_a_jetson_and_targets_without_layers(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    with pytest.raises(UsageError, match="layers are timed on jetson and remote, not vela"):
        handoff(stubs.convnet(16), None, "vela", bundle, layers=8)
    options = {"rounds": "1", "idle": "0", "clocks": "keep"}
    handoff(stubs.convnet(16), None, "jetson", bundle, options=options, layers=16)
    index = json.loads((bundle / INDEX).read_text())
    widths = {tuple(layer["weight"][:2]) for layer in index["layers"]}
    assert {(32, 16), (16, 16), (16, 1), (10, 32), (10, 16)} == widths
    stubs.command(tmp_path / "bin", "trtexec", TRTEXEC)
    ran = stubs.run(bundle, tmp_path / "bin")
    assert ran.returncode == 0, ran.stderr
    table = write_table(bundle, tmp_path / "orin.latency.json")
    assert table.facts["runtime"] == "tensorrt" and table.facts["precision"] == "f16"
    # the stub's engines take as many milliseconds as their model has bytes
    assert [anchor.name for anchor in table.anchors] == ["50.0%", "100%"]


def test_layers_behind_computed_shapes_count() -> None:
    """Shapes that only canonicalization folds: a layer without one would be missing in the sum."""
    raw = load(
        onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 4] x) => (float[N, 3] y)
            <float[4, 3] w = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, int64[1] four = {4}>
            { s = Shape<end = 1>(x)  t = Concat<axis = 0>(s, four)  a = Reshape(x, t)
              y = MatMul(a, w) }"""
        )
    )
    spec = LayerSpec("MatMul", (1, 4), (4, 3))
    table = make_table([(spec, 2.0)], {"100%": ([spec], 3.0)}, 1, {})
    with TableModel(raw, table, DEFAULTS) as compiled:
        assert compiled.sample({}, 1) == [3.0] and len(compiled.profile({}, 1)) == 1
    with pytest.raises(EngineError, match="shape of 'a' at node .* cannot be inferred"):
        list_specs(raw)


def test_candidates_follow_groups_and_depthwise_layers() -> None:
    specs = list(dict.fromkeys(list_candidates(ANALYSIS, 4)))
    first = [s.weight for s in specs if s.weight[1] == 3]
    assert sorted(w[0] for w in first) == [4, 8, 12, 16], "the image's channels cannot shrink"
    assert np.prod([len({s.weight[i] for s in specs if s.weight[1] != 3}) for i in (0, 1)]) >= 16
