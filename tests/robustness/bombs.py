"""Mutators of small files whose model is huge when it is run, analyzed or unfolded."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, FunctionProto, ModelProto, TensorProto, helper, numpy_helper

from tests.robustness.draws import pick, size
from tests.robustness.mutators import mutator

_DEPTHS = (2, 10, 31, 33, 60, 95)
_DOUBLINGS = (4, 12, 24, 40, 62, 80)


def _end(model: ModelProto, name: str) -> None:
    """Add a tensor to the outputs."""
    model.graph.output.append(helper.make_empty_tensor_value_info(name))


def _source(rng: np.random.Generator, model: ModelProto) -> str:
    """Return the name of a tensor of the main graph."""
    names = [o for n in model.graph.node for o in n.output if o]
    names += [i.name for i in (*model.graph.input, *model.graph.initializer)]
    return str(pick(rng, names)) if names else "x"


def _constant(model: ModelProto, name: str, values: object, dtype: type = np.int64) -> str:
    """Add an initializer and return its name."""
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


@mutator
def huge_fill(rng: np.random.Generator, model: ModelProto) -> None:
    tag = f"fill{rng.integers(1 << 30)}"
    shape = _constant(model, f"{tag}_shape", [size(rng) for _ in range(int(pick(rng, (1, 2, 4))))])
    model.graph.node.add(op_type="ConstantOfShape", input=[shape], output=[tag])
    if rng.random() < 0.5:
        model.graph.node.add(op_type="ReduceSum", input=[tag], output=[f"{tag}_sum"])
        tag += "_sum"
    _end(model, tag)


@mutator
def huge_expansion(rng: np.random.Generator, model: ModelProto) -> None:
    source, tag = _source(rng, model), f"wide{rng.integers(1 << 30)}"
    op = pick(rng, ("Expand", "Tile", "Pad", "Resize", "Reshape", "OneHot"))
    sizes = [size(rng) if rng.random() < 0.4 else 1 for _ in range(int(pick(rng, (1, 2, 4, 8))))]
    inputs = {
        "Resize": [source, "", "", f"{tag}_n"],
        "OneHot": [f"{tag}_n", f"{tag}_d", f"{tag}_v"],
    }.get(op, [source, f"{tag}_n"])
    _constant(model, f"{tag}_n", sizes)
    if op == "OneHot":
        _constant(model, f"{tag}_d", size(rng))
        _constant(model, f"{tag}_v", [0, 1], np.float32)
    model.graph.node.add(op_type=op, input=inputs, output=[tag])
    _end(model, tag)


@mutator
def doubling(rng: np.random.Generator, model: ModelProto) -> None:
    name, axis = _source(rng, model), int(pick(rng, (0, 1, -1)))
    op = pick(rng, ("Concat", "Concat", "Add", "Tile", "Einsum"))
    for i in range(int(pick(rng, _DOUBLINGS))):
        out = f"twice{i}_{rng.integers(1 << 30)}"
        if op == "Tile":
            node = helper.make_node(
                "Tile", [name, _constant(model, f"{out}_n", [2, 2, 2, 2])], [out]
            )
        elif op == "Einsum":
            node = helper.make_node("Einsum", [name, name], [out], equation="...,...->...")
        else:
            node = helper.make_node(
                op, [name, name], [out], **({"axis": axis} if op == "Concat" else {})
            )
        model.graph.node.append(node)
        name = out
    _end(model, name)


@mutator
def doubling_on_the_way(rng: np.random.Generator, model: ModelProto) -> None:
    """Double the channels between two nodes of the model."""
    nodes = [n for n in model.graph.node if n.input and n.output]
    if not nodes:
        return
    node = pick(rng, nodes)
    name = node.output[0]
    consumer = pick(rng, nodes)
    added = []
    for i in range(int(pick(rng, _DOUBLINGS[:4]))):
        added.append(
            helper.make_node(
                "Concat", [name, name], [f"{node.output[0]}_{i}_{rng.integers(1 << 30)}"], axis=1
            )
        )
        name = added[-1].output[0]
    at = list(model.graph.node).index(node) + 1
    rest = [type(n).FromString(n.SerializeToString()) for n in model.graph.node[at:]]
    del model.graph.node[at:]
    model.graph.node.extend([*added, *rest])
    if consumer.input:
        consumer.input[0] = name


@mutator
def computed_shape(rng: np.random.Generator, model: ModelProto) -> None:
    """Add a shape that is computed from values, known only when the model runs."""
    source, tag = _source(rng, model), f"computed{rng.integers(1 << 30)}"
    for op, inputs, out in (
        ("Shape", [source], f"{tag}_s"),
        ("Mul", [f"{tag}_s", _constant(model, f"{tag}_f", [size(rng)])], f"{tag}_m"),
        ("Expand", [source, f"{tag}_m"], tag),
    ):
        model.graph.node.add(op_type=op, input=inputs, output=[out])
    _end(model, tag)


@mutator
def long_range(rng: np.random.Generator, model: ModelProto) -> None:
    tag = f"range{rng.integers(1 << 30)}"
    limits = [
        _constant(model, f"{tag}_{i}", v)
        for i, v in enumerate((0, size(rng), pick(rng, (1, 1, -1, 0, 2**40))))
    ]
    model.graph.node.add(op_type="Range", input=limits, output=[tag])
    _end(model, tag)


@mutator
def long_split(rng: np.random.Generator, model: ModelProto) -> None:
    node = helper.make_node(
        "Split",
        [_source(rng, model)],
        [f"part{i}_{rng.integers(1 << 30)}" for i in range(int(pick(rng, (0, 1, 5, 3000))))],
        axis=int(pick(rng, (0, 1, -1, 99))),
    )
    model.graph.node.append(node)


@mutator
def long_loop(rng: np.random.Generator, model: ModelProto) -> None:
    """Add a Loop of many iterations, which may stack a result of each."""
    tag = f"loop{rng.integers(1 << 30)}"
    count, go = (
        _constant(model, f"{tag}_m", size(rng)),
        _constant(model, f"{tag}_c", True, np.bool_),
    )
    nodes = [
        helper.make_node("Identity", [f"{tag}_go"], [f"{tag}_d"]),
        helper.make_node("Add", [f"{tag}_s", f"{tag}_s"], [f"{tag}_t"]),
    ]
    state = [
        helper.make_tensor_value_info(f"{tag}_{n}", TensorProto.FLOAT, [4]) for n in ("s", "t")
    ]
    flags = [helper.make_tensor_value_info(f"{tag}_{n}", TensorProto.BOOL, []) for n in ("go", "d")]
    collected = (
        [helper.make_tensor_value_info(f"{tag}_t", TensorProto.FLOAT, [4])]
        if rng.random() < 0.5
        else []
    )
    body = helper.make_graph(
        nodes,
        "body",
        [helper.make_tensor_value_info(f"{tag}_i", TensorProto.INT64, []), flags[0], state[0]],
        [flags[1], state[1], *collected],
    )
    start = _constant(model, f"{tag}_0", np.ones(4), np.float32)
    model.graph.node.append(
        helper.make_node(
            "Loop", [count, go, start], [f"{tag}_e", *[f"{tag}_all" for _ in collected]], body=body
        )
    )
    _end(model, f"{tag}_e")


@mutator
def deep_bodies(rng: np.random.Generator, model: ModelProto) -> None:
    tag = f"deep{rng.integers(1 << 30)}"
    yes = _constant(model, f"{tag}_yes", True, np.bool_)
    source = _source(rng, model)
    graph = helper.make_graph(
        [helper.make_node("Relu", [source], [f"{tag}_r"])],
        "leaf",
        [],
        [helper.make_empty_tensor_value_info(f"{tag}_r")],
    )
    for level in range(int(pick(rng, _DEPTHS))):
        out = f"{tag}_{level}"
        node = helper.make_node("If", [yes], [out])
        for name in ("then_branch", "else_branch")[: 2 if level < 6 else 1]:
            node.attribute.append(AttributeProto(name=name, type=AttributeProto.GRAPH, g=graph))
        graph = helper.make_graph([node], out, [], [helper.make_empty_tensor_value_info(out)])
    model.graph.node.extend(graph.node)
    _end(model, graph.output[0].name)


@mutator
def odd_body(rng: np.random.Generator, model: ModelProto) -> None:
    """Add an If with unequal branches, or a Loop or Scan with the wrong body."""
    tag = f"odd{rng.integers(1 << 30)}"
    body = helper.make_graph(
        [helper.make_node("Relu", [_source(rng, model)], [f"{tag}_r"])],
        "b",
        [],
        [helper.make_empty_tensor_value_info(f"{tag}_r")],
    )
    op = pick(rng, ("If", "Loop", "Scan", "SequenceMap"))
    node = helper.make_node(
        op,
        [_source(rng, model) for _ in range(int(rng.integers(0, 4)))],
        [f"{tag}_{i}" for i in range(int(rng.integers(0, 4)))],
    )
    for name in pick(rng, (["body"], ["then_branch"], ["then_branch", "else_branch"], [])):
        node.attribute.append(AttributeProto(name=name, type=AttributeProto.GRAPH, g=body))
    model.graph.node.append(node)


def _function(model: ModelProto, name: str, calls: list[str]) -> FunctionProto:
    nodes, value = [], "i"
    for n, called in enumerate(calls):
        nodes.append(
            helper.make_node(
                called, [value], [f"v{n}"], domain="local" if called.startswith("f") else ""
            )
        )
        value = f"v{n}"
    nodes.append(helper.make_node("Identity", [value], ["o"]))
    return helper.make_function(
        "local",
        name,
        ["i"],
        ["o"],
        nodes,
        [
            helper.make_opsetid("", model.opset_import[0].version if model.opset_import else 17),
            helper.make_opsetid("local", 1),
        ],
    )


def _call(rng: np.random.Generator, model: ModelProto, name: str) -> None:
    out = f"called{rng.integers(1 << 30)}"
    model.graph.node.add(op_type=name, domain="local", input=[_source(rng, model)], output=[out])
    _end(model, out)
    if not any(o.domain == "local" for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid("local", 1))


@mutator
def recursive_function(rng: np.random.Generator, model: ModelProto) -> None:
    calls = pick(rng, ({"f0": ["f0"]}, {"f0": ["f1"], "f1": ["f0"]}, {"f0": ["Relu", "f0", "f0"]}))
    model.functions.extend(_function(model, name, called) for name, called in calls.items())
    _call(rng, model, "f0")


@mutator
def function_bomb(rng: np.random.Generator, model: ModelProto) -> None:
    """Add functions that each call the one below several times."""
    levels, times = int(pick(rng, (3, 8, 20, 40))), int(pick(rng, (2, 10)))
    model.functions.append(_function(model, "f0", ["Relu"]))
    for level in range(1, levels):
        model.functions.append(_function(model, f"f{level}", [f"f{level - 1}"] * times))
    _call(rng, model, f"f{levels - 1}")


@mutator
def odd_function(rng: np.random.Generator, model: ModelProto) -> None:
    model.functions.append(_function(model, "f0", ["Relu"]))
    function = model.functions[-1]
    choice = rng.random()
    if choice < 0.3:
        model.functions.append(function)
    elif choice < 0.6:
        function.input.extend(["i", "j"])
    elif choice < 0.8:
        function.node[0].attribute.append(
            AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="missing")
        )
    else:
        function.ClearField("node")
    _call(rng, model, "f0")


@mutator
def long_chain(rng: np.random.Generator, model: ModelProto) -> None:
    name = _source(rng, model)
    for i in range(int(pick(rng, (100, 1000)))):
        model.graph.node.add(
            op_type=pick(rng, ("Relu", "Identity", "Neg")),
            input=[name],
            output=[f"link{i}_{rng.integers(1 << 30)}"],
        )
        name = model.graph.node[-1].output[0]
    _end(model, name)
