"""Time the bundle's models, and its layers if it has them, with a runtime of this machine.

python3 run.py [--runtime onnxruntime] [--precision f32] [--threads 1] [--rounds 30]
"""

from __future__ import annotations

import json

import agent
import common
import layer_times


def main() -> None:
    """Time every model of the bundle in turns, then the layers."""
    manifest, chosen, results = common.start(__doc__.splitlines()[0])
    found, broken = agent.find_runtimes()
    if chosen.runtime not in found or chosen.runtime not in agent.RUNTIMES:
        listed = broken.get(chosen.runtime) or "found: " + (", ".join(found) or "none")
        common.fail(f"runtime {chosen.runtime} is not there; {listed}")
    timer = layer_times.RuntimeTimer(chosen.runtime, chosen.precision, int(chosen.threads))
    rows: dict[str, list[float]] = {}
    for _ in range(int(chosen.rounds)):
        for name, path in common.models(manifest).items():
            rows.setdefault(name, []).append(timer(path, "whole_" + name))
    for name, times in rows.items():
        (results / f"{name}.times.json").write_text(json.dumps(times))
    facts = {
        "runtime": chosen.runtime,
        "version": found[chosen.runtime],
        "precision": chosen.precision,
        "threads": int(chosen.threads),
    }
    if (common.FOLDER / "layers.zip").is_file():
        layer_times.measure(results, timer, facts)
    common.write_json(results / "environment.json", dict(agent.describe_machine(), **facts))
    common.finish(results)


if __name__ == "__main__":
    main()
