"""Reports for the tests of the page."""

from __future__ import annotations

from typing import Any

from example_rows import examples

from onnxprune.report.data import GroupRow, Report, Stage, TargetRow

HOSTILE = '<script>alert("x")</script><img src=x onerror=alert(1)>\'"&</title></style>{{ 7 * 7 }}'


def figures(name: str, error: float | None) -> dict[str, Any]:
    """Return the figures of a model."""
    return {
        "relative_error": error,
        "agreement": None if error is None else 1 - error,
        "metrics": {name: {"value": None if error is None else 1 - error, "standard_error": 0.01}},
    }


def output(number: int) -> dict[str, Any]:
    """Return the fidelity of one output."""
    return {
        "relative_error": 0.1 / (number + 1),
        "max_abs": 1.5,
        "top1_agreement": 0.875 if number else None,
        "location_agreement": None,
    }


def candidate(name: str, value: float | None, chosen: bool, problem: str = "") -> dict[str, Any]:
    """Return one candidate."""
    return {
        "criterion": name,
        "allocate": name,
        "macs": value,
        "value": value,
        "standard_error": value and 0.01,
        "problem": problem,
        "chosen": chosen,
    }


def full(groups: int = 12, name: str = "/block/conv") -> Report:
    """Return a report with content in every section; `name` is part of every name in it."""
    names = [f"{name}.{i}" for i in range(groups)]
    graph = [{"node": name, "op": "input", "inputs": [], "groups": []}]
    for i in range(groups):
        graph.append(
            {
                "node": names[i],
                "op": "Conv" if not i else name,
                "inputs": [len(graph) - 1],
                "groups": [names[i]],
            }
        )
        graph.append(
            {
                "node": f"{name}/add{i}",
                "op": "Add",
                "inputs": [len(graph) - 1, max(len(graph) - 3, 0)],
                "groups": [names[i], names[0]],
            }
        )
    graph.append({"node": name, "op": "output", "inputs": [len(graph) - 1], "groups": []})
    layers = [
        {
            "node": n,
            "op": name,
            "macs": [10**7 - 10**4 * i, 10**6 * (i % 7 + 1)],
            "bytes": [10**6, 10**5 * (i % 7 + 1)],
            "time_ms": [0.3, None if i % 5 == 0 else 0.1],
        }
        for i, n in enumerate(names)
    ]
    return Report(
        f"models/{name}.onnx",
        f"out/{name}.onnx",
        {"macs": 10**9, "params": 10**6, "bytes": 4 * 10**6, "activation_bytes": 10**6},
        {
            "macs": 5 * 10**8,
            "params": 6 * 10**5,
            "bytes": 24 * 10**5,
            "activation_bytes": 9 * 10**5,
        },
        targets=(TargetRow(name, 5e8, 5e8), TargetRow("latency.onnxruntime=2x", 1.0, 1.2)),
        verification={
            "ok": True,
            "exact": False,
            "difference": 1e-7,
            "masked_difference": 0.5,
            "tolerance": 1e-5,
        },
        latency={
            name: {
                "before_ms": 2.0,
                "after_ms": 1.2,
                "speedup": 1.66,
                "low": 1.6,
                "high": 1.7,
                "before_times": [1.9, 2.0, 2.0, 2.1, 2.3, 9.0],
                "after_times": [1.1, 1.2, 1.2, 1.2, 1.4, 1.9],
            },
            "other": {"before_ms": 1.0, "after_ms": 1.1, "speedup": 0.9},
        },
        fidelity={
            "samples": 50,
            "relative_error": 0.1,
            "agreement": 0.98,
            "outputs": {f"{name}{i}": output(i) for i in range(3)},
        },
        quality={
            name: {
                "before": 0.7,
                "after": 0.69,
                "standard_error": 0.004,
                "samples": 500,
                "classes": {f"{name}{c}": [0.7, 0.7 - c / 100, 50] for c in range(9)},
            }
        },
        splits={
            "calibration": name,
            "selection": name,
            "report": f"64 of {name}",
            "report_labels": name,
        },
        control=[figures(name, 0.5), figures(name, 0.05), figures(name, None)],
        selection={
            "metric": name,
            "samples": 125,
            "rows": [candidate(name, 0.7, True), candidate(name, None, False, f"no {name} here")],
        },
        bisection={
            "max_divergence": 0.1,
            "reached": 0.09,
            "samples": 64,
            "rows": [
                {"target": [name], "macs": 0.4, "divergence": None},
                {"target": [name], "macs": 0.5, "divergence": 0.09},
            ],
        },
        curve=[
            {
                "macs": m / 10,
                "quality": 0.7 - (1 - m / 10) ** 2,
                "metric": name,
                "label": name,
                "chosen": m == 5,
                **figures(name, 0.1 * m),
            }
            for m in range(2, 11)
        ],
        groups=[
            GroupRow(n, 64, 64 - i % 50, i % 9 != 0, (i * 37 % 101) / 1000, (n,))
            for i, n in enumerate(names)
        ],
        layers=layers,
        graph=graph,
        frozen=[
            {
                "tensor": n,
                "axis": 0,
                "op": name,
                "node": name,
                "reason": f"graph output {name}" if i % 3 else "no rule",
            }
            for i, n in enumerate(names)
        ],
        measured={n: [[0.25, 0.001 * i], [0.75, 0.02 * i]] for i, n in enumerate(names)},
        sensitivity={
            n: [[0.25, 0.01 * i], [0.5, 0.03 * i], [0.9, 0.2 * i]] for i, n in enumerate(names)
        },
        operators={name: [3, 1], "Conv": [12, 12], "Slice": [0, 2]},
        examples=examples(name),
        data=name,
        decided_by={
            "criterion": "reconstruction",
            "allocate": name,
            "repair": "least-squares",
            "seed": 0,
            "result_sha256": "ab" * 32,
        },
        recipe={"target": [name], "mean": [0.5], "freeze": [name]},
        provenance={"python": "3.11.7", "onnxprune": "0.1.0", "source_sha256": "cd" * 32},
        machine={"cpu": name, "system": "Linux"},
        stages=(Stage("score", 1.5, False, name), Stage("plan", 0.1, True)),
        warnings=(f"a warning of {name}",) * 7,
    )
