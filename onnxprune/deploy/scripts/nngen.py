"""Quantize the bundle's models with NNgen, write Verilog and count clock cycles in Icarus Verilog.

python3 run.py [--bits 8] [--par-ich 1] [--par-och 1] [--simulate yes]
"""

from __future__ import annotations

import math
import re
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import common

HOW = "create the environment with tools/setup_nngen.sh and run this script with its python"
CHUNK_BYTES = 64
BUS_BITS = 32
MEMORY_BITS = 1 << 24
CLOCK_HALF_PERIOD, RESET_PERIOD, LONGEST_SIMULATION = 5, 100, 4_000_000_000


def restore_numpy_names(numpy: Any) -> None:
    """Define the aliases that NNgen 1.3.4 uses and numpy 1.24 removed."""
    for name, kind in (("float", float), ("int", int), ("bool", bool)):
        if name not in numpy.__dict__:
            setattr(numpy, name, kind)


def to_nhwc(values: Any) -> Any:
    """Return images with channels last; other ranks are returned unchanged."""
    return values.transpose(0, 2, 3, 1) if values.ndim == 4 else values


class Net:
    """Integer model of NNgen; inputs are scaled so that the largest one fills its type."""

    def __init__(self, path: Path, chosen: Namespace, numpy: Any, nngen: Any) -> None:
        self.numpy, self.nngen = numpy, nngen
        bits = int(chosen.bits)
        if hasattr(nngen, "dtype_info"):
            self.kind = nngen.dtype_info("int", bits)
        else:
            self.kind = getattr(nngen, f"int{bits}")
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
                f"{path.name} has {len(placeholders)} inputs and {len(outputs)} outputs; "
                "this flow takes models with one of each"
            )
        ((self.input_name, self.input),) = placeholders.items()
        ((_, self.output),) = outputs.items()
        self.operators = operators
        with numpy.load(common.FOLDER / "inputs.npz") as samples:
            self.samples = to_nhwc(samples[self.input_name])
        self.scale = (2 ** (bits - 1) - 1) / max(1e-6, float(numpy.abs(self.samples).max()))
        self.quantize(chosen)

    def quantize(self, chosen: Namespace) -> None:
        """Quantize weights to integers with shifts calibrated on the bundle's inputs."""
        values = self.to_integers(self.samples)
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

    def to_integers(self, values: Any) -> Any:
        """Return inputs in the accelerator's integer type."""
        limit = 2 ** (self.kind.width - 1) - 1
        scaled = self.numpy.round(values * self.scale)
        return self.numpy.clip(scaled, -limit, limit).astype(self.numpy.int64)

    def evaluate(self, values: Any) -> Any:
        """Return integer outputs of the software model, computed one sample at a time."""
        rows = [
            self.nngen.eval([self.output], **{self.input_name: v[None]})[0]
            for v in self.to_integers(values)
        ]
        return self.numpy.concatenate(rows)


class Memory(NamedTuple):
    """Initial content of the accelerator's memory and the addresses of its parts in bytes."""

    image: Any
    expected_at: int
    scratch_at: int


class Testbench(NamedTuple):
    """Verilog module that holds the accelerator's clock, reset, memory and control bus."""

    module: Any
    ports: Any
    clock: Any
    reset: Any
    reset_low: Any
    memory: Any
    control: Any
    counter: Any


def align(address: int) -> int:
    """Round an address up to a multiple of CHUNK_BYTES."""
    return int(math.ceil(address / CHUNK_BYTES)) * CHUNK_BYTES


def lay_out_memory(net: Net, chosen: Namespace, axi: Any) -> Memory:
    """Return memory that holds one input, the parameters and the integer model's output."""
    value = net.to_integers(net.samples[:1])
    expected = net.nngen.eval([net.output], **{net.input_name: value})[0]
    parameters = net.nngen.export_ndarray([net.output], CHUNK_BYTES)
    variable_at = align(net.input.addr + net.input.memory_size)
    expected_at = align(variable_at + len(parameters))
    scratch_at = align(expected_at + net.output.memory_size)
    image = net.numpy.zeros([MEMORY_BITS // BUS_BITS], dtype=net.numpy.int64)
    bits = net.kind.width
    # values are packed into words of the bus
    lanes = math.ceil(BUS_BITS / bits)
    input_lanes, output_lanes = max(lanes, int(chosen.par_ich)), max(lanes, int(chosen.par_och))
    axi.set_memory(image, value, BUS_BITS, bits, net.input.addr, input_lanes)
    axi.set_memory(image, parameters, BUS_BITS, 8, variable_at)
    axi.set_memory(image, expected, BUS_BITS, bits, expected_at, output_lanes)
    return Memory(image, expected_at, scratch_at)


def build_testbench(hardware: Any, image: Any, path: Path) -> Testbench:
    """Return a module with memory, control bus and cycle counter for the accelerator.

    Parameters
    ----------
    hardware
        Accelerator as a veriloggen module.
    image
        Initial content of the memory.
    path
        File that the memory's content is written to for the simulator.
    """
    veriloggen, vthread, axi = load_veriloggen()
    module = veriloggen.Module("bench")
    module.copy_params(hardware)
    ports = module.copy_sim_ports(hardware)
    clock, reset_low = ports["CLK"], ports["RESETN"]
    reset = module.Wire("RST")
    reset.assign(veriloggen.Not(reset_low))
    memory = axi.AxiMemoryModel(
        module,
        "memory",
        clock,
        reset,
        datawidth=BUS_BITS,
        memimg=image,
        memimg_name=str(path),
        memimg_datawidth=BUS_BITS,
    )
    memory.connect(ports, "maxi")
    control = vthread.AXIMLite(module, "_saxi", clock, reset, noio=True)
    control.connect(ports, "saxi")
    counter = module.Reg("time_counter", 32, initval=0)
    veriloggen.Seq(module, "seq", clock, reset)(counter.inc())
    return Testbench(module, ports, clock, reset, reset_low, memory, control, counter)


def add_driver(net: Net, bench: Testbench, layout: Memory) -> None:
    """Add the thread that runs one inference and prints the cycles and the wrong outputs.

    veriloggen compiles the source of `drive` to Verilog and looks its names up among the locals
    of the function that starts the thread, so that each of them has to be a local here.
    """
    _, vthread, _ = load_veriloggen()
    nngen, output = net.nngen, net.output
    memory, control, counter = bench.memory, bench.control, bench.counter
    rows, columns = int(net.numpy.prod(output.shape[:-1])), output.shape[-1]
    stride, bits, result_at = output.aligned_shape[-1], output.dtype.width, output.addr
    expected_at, scratch_at = layout.expected_at, layout.scratch_at

    def drive():
        nngen.sim.set_global_addrs(control, scratch_at)
        begin = counter.value
        nngen.sim.start(control)
        nngen.sim.wait(control)
        end = counter.value
        print("cycles %d" % (end - begin))  # noqa: UP031 - veriloggen compiles no other form
        wrong = 0
        for row in range(rows):
            for column in range(columns):
                actual = memory.read_word(row * stride + column, result_at, bits)
                expected = memory.read_word(row * stride + column, expected_at, bits)
                if vthread.verilog.NotEql(actual, expected):
                    wrong += 1
        print("wrong %d" % wrong)  # noqa: UP031 - veriloggen compiles no other form
        vthread.finish()

    vthread.Thread(bench.module, "drive", bench.clock, bench.reset, drive).start()


def run_simulator(hardware: Any, bench: Testbench, name: str, results: Path) -> str:
    """Simulate the testbench with Icarus Verilog and return its log."""
    veriloggen, _, _ = load_veriloggen()
    module = bench.module
    module.Instance(
        hardware,
        "accelerator",
        params=module.connect_params(hardware),
        ports=module.connect_ports(hardware),
    )
    veriloggen.simulation.setup_clock(module, bench.clock, hperiod=CLOCK_HALF_PERIOD)
    start = veriloggen.simulation.setup_reset(
        module, bench.reset_low, module.make_reset(), period=RESET_PERIOD, polarity="low"
    )
    # ends a simulation that hangs
    start.add(veriloggen.Delay(LONGEST_SIMULATION), veriloggen.Systask("finish"))
    log = veriloggen.simulation.Simulator(module, sim="iverilog").run(
        outputfile=str(results / f"{name}.vvp"), display=False
    )
    (results / f"{name}.sim.log").write_text(log, encoding="utf-8")
    for ending in ("memory", "vvp"):
        (results / f"{name}.{ending}").unlink()
    return log


def load_veriloggen() -> tuple[Any, Any, Any]:
    """Return the modules veriloggen, veriloggen.thread and veriloggen.types.axi."""
    names = ("veriloggen", "veriloggen.thread", "veriloggen.types.axi")
    veriloggen, vthread, axi = (common.module(n, HOW) for n in names)
    return veriloggen, vthread, axi


def simulate(net: Net, name: str, chosen: Namespace, results: Path) -> dict[str, Any]:
    """Simulate one inference; return its cycles and outputs that are wrong."""
    _, _, axi = load_veriloggen()
    hardware = net.nngen.to_veriloggen(
        [net.output], name, silent=True, config={"maxi_datawidth": BUS_BITS}
    )
    (results / f"{name}.v").write_text(hardware.to_verilog(), encoding="utf-8")
    layout = lay_out_memory(net, chosen, axi)
    bench = build_testbench(hardware, layout.image, results / f"{name}.memory")
    add_driver(net, bench, layout)
    log = run_simulator(hardware, bench, name, results)
    printed = dict(re.findall(r"(cycles|wrong)\s+(\d+)", log))
    if len(printed) != 2:
        common.fail(f"the simulation of {name} did not finish; see {results / (name + '.sim.log')}")
    return {
        "cycles": int(printed["cycles"]),
        "outputs_wrong": int(printed["wrong"]),
        "outputs": int(net.numpy.prod(net.output.shape)),
    }


def agreement(net: Net, name: str, numpy: Any) -> dict[str, Any]:
    """Return the top-1 agreement of the integer model with onnxruntime."""
    with numpy.load(common.FOLDER / f"expected_{name}.npz") as arrays:
        expected = arrays["output_0"]
    actual = net.evaluate(net.samples)
    classes = actual.reshape(len(actual), -1).argmax(-1)
    same = classes == expected.reshape(len(expected), -1).argmax(-1)
    return {"argmax_agreement": float(same.mean()), "samples": len(same)}


def main() -> None:
    """Quantize, evaluate and simulate every model of the bundle."""
    manifest, chosen, results = common.start(__doc__.splitlines()[0])
    numpy = common.module("numpy", HOW)
    restore_numpy_names(numpy)
    nngen = common.module("nngen", HOW)
    if chosen.simulate == "yes":
        common.tool(
            "iverilog",
            "install Icarus Verilog (sudo apt-get install iverilog), "
            "or pass --simulate no to write only the Verilog",
        )
    for name, path in common.models(manifest).items():
        common.say(f"{name}: quantizing")
        # in case NNgen draws random numbers: equal bundles give equal results
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
    common.finish(results)


if __name__ == "__main__":
    main()
