"""Quantize the bundle's models with NNgen, write Verilog, and count clock cycles under Icarus Verilog.

python3 run.py [--bits 8] [--par-ich 1] [--par-och 1] [--simulate yes]
"""

from __future__ import annotations

import math
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import common  # type: ignore[import-not-found]  # beside this file in the bundle

HOW = "make the environment with tools/setup_nngen.sh, and run this script with its python"
CHUNK_BYTES = 64
MEMORY_BITS = 1 << 24
CLOCK_HALF_PERIOD, RESET_PERIOD, LONGEST_SIMULATION = 5, 100, 4_000_000_000


def old_names(numpy: Any) -> None:
    """Names that NNgen 1.3.4 reads and numpy 1.24 removed."""
    for name, kind in (("float", float), ("int", int), ("bool", bool)):
        if name not in numpy.__dict__:
            setattr(numpy, name, kind)


def nhwc(values: Any) -> Any:
    """Channels last for images, anything else as it is."""
    return values.transpose(0, 2, 3, 1) if values.ndim == 4 else values


class Net:
    """A model as NNgen sees it: integers throughout, scaled so that the largest input fills its type."""

    def __init__(self, path: Path, chosen: Namespace, numpy: Any, nngen: Any) -> None:
        self.numpy, self.nngen = numpy, nngen
        bits = int(chosen.bits)
        self.kind = (
            nngen.dtype_info("int", bits)
            if hasattr(nngen, "dtype_info")
            else getattr(nngen, f"int{bits}")
        )
        wide = nngen.int32
        outputs, placeholders, _, _, operators = nngen.from_onnx(
            str(path),
            default_placeholder_dtype=self.kind,
            default_variable_dtype=self.kind,
            default_constant_dtype=self.kind,
            default_operator_dtype=self.kind,
            default_scale_dtype=wide,
            default_bias_dtype=wide,
        )
        if len(outputs) != 1 or len(placeholders) != 1:
            common.fail(
                f"{path.name}: one input and one output are needed here, not {len(placeholders)} and {len(outputs)}"
            )
        ((self.input_name, self.input),) = placeholders.items()
        ((_, self.output),) = outputs.items()
        self.operators = operators
        with numpy.load(common.FOLDER / "inputs.npz") as samples:
            self.samples = nhwc(samples[self.input_name])
        self.scale = (2 ** (bits - 1) - 1) / max(1e-6, float(numpy.abs(self.samples).max()))
        self.quantize(chosen)

    def quantize(self, chosen: Namespace) -> None:
        """Integer weights and shifts, found on the bundle's inputs."""
        values = self.integers(self.samples)
        self.nngen.quantize(
            [self.output],
            {self.input_name: self.scale},
            input_generators={self.input_name: lambda node, count: values[:count]},
            num_samples=min(len(values), int(chosen.samples)),
        )
        for operator in self.operators.values():
            name = type(operator).__name__
            if name in ("conv2d", "matmul"):
                operator.attribute(par_ich=int(chosen.par_ich), par_och=int(chosen.par_och))
            elif "pool" in name:
                operator.attribute(par=int(chosen.par_och))

    def integers(self, values: Any) -> Any:
        """Inputs in the accelerator's type."""
        limit = 2 ** (self.kind.width - 1) - 1
        return self.numpy.clip(self.numpy.round(values * self.scale), -limit, limit).astype(
            self.numpy.int64
        )

    def evaluate(self, values: Any) -> Any:
        """Integer outputs of the software model, one sample at a time."""
        rows = [
            self.nngen.eval([self.output], **{self.input_name: v[None]})[0]
            for v in self.integers(values)
        ]
        return self.numpy.concatenate(rows)


def simulate(net: Net, name: str, chosen: Namespace, results: Path) -> dict[str, Any]:
    """Cycles of one inference, and whether the hardware's outputs are those of the integer model."""
    veriloggen, vthread, axi = (
        common.module(n, HOW) for n in ("veriloggen", "veriloggen.thread", "veriloggen.types.axi")
    )

    numpy, nngen, width = net.numpy, net.nngen, 32
    hardware = nngen.to_veriloggen(
        [net.output], name, silent=True, config={"maxi_datawidth": width}
    )
    (results / f"{name}.v").write_text(hardware.to_verilog(), encoding="utf-8")
    value = net.integers(net.samples[:1])
    expected = net.nngen.eval([net.output], **{net.input_name: value})[0]

    def aligned(address: int) -> int:
        return int(math.ceil(address / CHUNK_BYTES)) * CHUNK_BYTES

    parameters = nngen.export_ndarray([net.output], CHUNK_BYTES)
    variable_at = aligned(net.input.addr + net.input.memory_size)
    check_at = aligned(variable_at + len(parameters))
    scratch_at = aligned(check_at + net.output.memory_size)
    memory_image = numpy.zeros([MEMORY_BITS // width], dtype=numpy.int64)
    lanes = math.ceil(width / net.kind.width)
    axi.set_memory(
        memory_image, value, width, net.kind.width, net.input.addr, max(lanes, int(chosen.par_ich))
    )
    axi.set_memory(memory_image, parameters, width, 8, variable_at)
    axi.set_memory(
        memory_image, expected, width, net.kind.width, check_at, max(lanes, int(chosen.par_och))
    )

    bench = veriloggen.Module("bench")
    bench.copy_params(hardware)
    ports = bench.copy_sim_ports(hardware)
    clock, reset_low = ports["CLK"], ports["RESETN"]
    reset = bench.Wire("RST")
    reset.assign(veriloggen.Not(reset_low))
    memory = axi.AxiMemoryModel(
        bench,
        "memory",
        clock,
        reset,
        datawidth=width,
        memimg=memory_image,
        memimg_name=str(results / f"{name}.memory"),
        memimg_datawidth=width,
    )
    memory.connect(ports, "maxi")
    control = vthread.AXIMLite(bench, "_saxi", clock, reset, noio=True)
    control.connect(ports, "saxi")
    counter = bench.Reg("time_counter", 32, initval=0)
    veriloggen.Seq(bench, "seq", clock, reset)(counter.inc())
    rows, columns = int(numpy.prod(net.output.shape[:-1])), net.output.shape[-1]
    stride, bits, result_at = net.output.aligned_shape[-1], net.output.dtype.width, net.output.addr

    def drive():
        nngen.sim.set_global_addrs(control, scratch_at)
        begin = counter.value
        nngen.sim.start(control)
        nngen.sim.wait(control)
        end = counter.value
        print("cycles %d" % (end - begin))  # noqa: UP031 - read by the Verilog compiler, which knows this form only
        wrong = 0
        for row in range(rows):
            for column in range(columns):
                made = memory.read_word(row * stride + column, result_at, bits)
                wanted = memory.read_word(row * stride + column, check_at, bits)
                if vthread.verilog.NotEql(made, wanted):
                    wrong += 1
        print("wrong %d" % wrong)  # noqa: UP031
        vthread.finish()

    vthread.Thread(bench, "drive", clock, reset, drive).start()
    bench.Instance(
        hardware,
        "accelerator",
        params=bench.connect_params(hardware),
        ports=bench.connect_ports(hardware),
    )
    veriloggen.simulation.setup_clock(bench, clock, hperiod=CLOCK_HALF_PERIOD)
    start = veriloggen.simulation.setup_reset(
        bench, reset_low, bench.make_reset(), period=RESET_PERIOD, polarity="low"
    )
    start.add(veriloggen.Delay(LONGEST_SIMULATION), veriloggen.Systask("finish"))
    log = veriloggen.simulation.Simulator(bench, sim="iverilog").run(
        outputfile=str(results / f"{name}.vvp"), display=False
    )
    (results / f"{name}.sim.log").write_text(log, encoding="utf-8")
    for ending in ("memory", "vvp"):
        (results / f"{name}.{ending}").unlink()
    printed = dict(re.findall(r"(cycles|wrong)\s+(\d+)", log))
    if len(printed) != 2:
        common.fail(f"the simulation of {name} did not end; see {results / (name + '.sim.log')}")
    return {
        "cycles": int(printed["cycles"]),
        "outputs_wrong": int(printed["wrong"]),
        "outputs": rows * columns,
    }


def agreement(net: Net, name: str, numpy: Any) -> dict[str, Any]:
    """How often the integer model and onnxruntime name the same class."""
    with numpy.load(common.FOLDER / f"expected_{name}.npz") as expected:
        wanted = expected["output_0"]
    made = net.evaluate(net.samples)
    same = made.reshape(len(made), -1).argmax(-1) == wanted.reshape(len(wanted), -1).argmax(-1)
    return {"argmax_agreement": float(same.mean()), "samples": len(same)}


def main() -> None:
    """Every model, in order."""
    found, chosen, results = common.start(__doc__.splitlines()[0])
    numpy = common.module("numpy", HOW)
    old_names(numpy)
    nngen = common.module("nngen", HOW)
    if chosen.simulate == "yes":
        common.tool(
            "iverilog",
            "install Icarus Verilog (sudo apt-get install iverilog), or pass --simulate no to get the Verilog only",
        )
    for name, path in common.models(found).items():
        common.say(f"{name}: quantizing")
        numpy.random.seed(0)
        net = Net(path, chosen, numpy, nngen)
        report = agreement(net, name, numpy)
        if chosen.simulate == "yes":
            common.say(f"{name}: simulating")
            report.update(simulate(net, name, chosen, results))
        common.write_json(results / f"{name}.json", report)
    common.write_json(
        results / "environment.json",
        {"nngen": getattr(nngen, "__version__", ""), "options": vars(chosen)},
    )
    common.say(f"done; copy {results} back and run: onnxprune bench --collect FOLDER")


if __name__ == "__main__":
    main()
