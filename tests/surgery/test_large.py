"""A model of over 4 GB is pruned with little more than its largest tensor in memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

WIDTH, LAYERS = 16384, 4  # 1 GiB per layer
BLOCK = 1 << 24
TENSOR_BYTES = 4 * WIDTH * WIDTH
LIMIT_BYTES = 1.5 * TENSOR_BYTES + 500e6
NEEDED_BYTES = 8 * TENSOR_BYTES

MEASURED = """
import json, sys
from onnxprune.ir.io import load, save
from onnxprune.analysis.walk import analyze
from onnxprune.allocators.allocate import allocate
from onnxprune.allocators.base import Constraints
from onnxprune.criteria.base import Context
from onnxprune.criteria.magnitude import l2
from onnxprune.surgery.cut import cut
analysis = analyze(load(sys.argv[1]))
context = Context(analysis)
target = Constraints({"macs": 0.2 * analysis.cost().macs})
plan = allocate("uniform", context, l2(context), target)
save(cut(analysis, plan), sys.argv[2])
# not ru_maxrss, which begins with the peak of the process that started this one
with open("/proc/self/status") as status:
    peak = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(json.dumps({"peak": peak, "kept": {n: len(k) for n, k in plan.kept.items()}}))
"""


def write_model(path: Path) -> None:
    """Write a chain of matrix products with external weights, whose first rows are not zero.

    The file system stores no zeros after them.
    """
    nodes, tensors, infos = [], [], []
    pattern = np.random.default_rng(0).standard_normal(BLOCK // 4).astype(np.float32)
    with open(path.with_suffix(".data"), "wb") as data:
        for layer in range(LAYERS):
            name = f"w{layer}"
            tensor = TensorProto(
                name=name,
                data_type=TensorProto.FLOAT,
                dims=[WIDTH, WIDTH],
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in {
                "location": path.with_suffix(".data").name,
                "offset": data.tell(),
                "length": TENSOR_BYTES,
            }.items():
                tensor.external_data.add(key=key, value=str(value))
            start = data.tell()
            data.write(pattern.tobytes())
            data.seek(start + TENSOR_BYTES)
            tensors.append(tensor)
            nodes.append(
                helper.make_node(
                    "MatMul", [f"x{layer}", name], [f"x{layer + 1}"], name=f"mul{layer}"
                )
            )
        data.truncate()
    infos = [
        helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["n", WIDTH]) for i in (0, LAYERS)
    ]
    graph = helper.make_graph(nodes, "large", infos[:1], infos[1:], tensors)
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ).SerializeToString()
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_model_of_over_4_gb_is_cut_with_the_memory_of_one_tensor(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    if free < NEEDED_BYTES:
        pytest.skip(f"needs {NEEDED_BYTES / 1e9:.0f} GB of disk, {free / 1e9:.0f} are free")
    source, out = tmp_path / "large.onnx", tmp_path / "small.onnx"
    write_model(source)
    assert source.with_suffix(".data").stat().st_size > 4e9
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(source), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["peak"] <= LIMIT_BYTES, (
        f"{found['peak'] / 1e6:.0f} MB at the peak, {LIMIT_BYTES / 1e6:.0f} allowed"
    )
    kept = onnx.load(str(out), load_external_data=False)
    shapes = {t.name: list(t.dims) for t in kept.graph.initializer}
    widths = [found["kept"][f"mul{i}"] for i in range(LAYERS - 1)]
    assert [shapes[f"w{i}"] for i in range(LAYERS)] == [
        [a, b] for a, b in zip([WIDTH, *widths], [*widths, WIDTH], strict=False)
    ]
