"""Compare the output folders of one command, run with two checkouts, byte by byte.

Differences are sentences that name the file and, inside it, the first tensor, array or JSON path
that differs. "A" and "B" stand for the first and the second checkout.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

Json = Any  # what json.loads returns

MODEL, EXTERNAL_DATA = ".onnx", ".onnx.data"
COMPARED = (MODEL, ".data", ".npz", ".json", ".jsonl")
# They hold times of stages, measurements, and hashes over versions and scripts.
NOT_COMPARED = frozenset({"journal.jsonl", "measure.json", "manifest.json"})
# JSON keys that may differ between two equal runs, at any depth.
VOLATILE = frozenset(
    {
        "seconds",
        # versions
        "provenance",
        "version",
        # all options, with absolute paths, and hashes over versions and options
        "recipe",
        "key",
        # of a plan: differs if and only if the model does, and would hide what else differs
        "result_sha256",
        "machine",
        # sentences, which may quote measured times or the load of the machine
        "warnings",
        "verdicts",
        "next_steps",
        "detail",
    }
)
LONGEST_VALUE = 60  # characters of a JSON value in a message
# Of a model, in the order in which they are compared once tensors and nodes are equal.
MODEL_FIELDS = (
    "ir_version",
    "opset_import",
    "producer_name",
    "producer_version",
    "domain",
    "model_version",
    "doc_string",
    "metadata_props",
    "functions",
)
NODE_FIELDS = ("domain", "input", "output", "attribute", "doc_string", "metadata_props")
GRAPH_FIELDS = ("name", "input", "output", "value_info", "doc_string", "metadata_props")


def compare_folders(
    a: Path, b: Path, checkouts: tuple[Path, Path], ignored: Collection[str] = ()
) -> list[str]:
    """Compare all models, plans, scores and figures below two folders.

    Parameters
    ----------
    a, b
        Output folders of the two checkouts.
    checkouts
        Roots of A and B; paths below them in JSON texts are compared by file name.
    ignored
        JSON keys that are not compared, besides `VOLATILE`.

    Returns
    -------
    list of str
        One sentence per file that differs or exists on one side only, or that there are no files;
        empty if all are equal.
    """
    left, right = _list_files(a), _list_files(b)
    if not left and not right:
        return ["neither A nor B wrote a model, plan or score"]
    found = [f"{name}: only in A" for name in sorted(left - right)]
    found += [f"{name}: only in B" for name in sorted(right - left)]
    for name in sorted(left & right):
        difference = _compare_files(a / name, b / name, checkouts, VOLATILE | set(ignored))
        if difference:
            found.append(f"{name}: {difference}")
    return found


def compare_arrays(a: np.ndarray, b: np.ndarray) -> str | None:
    """Describe the difference of two arrays; None if dtype, shape and bytes are equal."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{a.dtype}{list(a.shape)} in A, {b.dtype}{list(b.shape)} in B"
    if a.dtype.kind in "OSU":
        wrong = np.flatnonzero(np.ravel(a != b))
        if not len(wrong):
            return None
        first = f"first {str(a.flat[wrong[0]])!r} in A, {str(b.flat[wrong[0]])!r} in B"
        return f"{len(wrong)} of {a.size} texts differ, {first}"
    if a.tobytes() == b.tobytes():
        return None
    with np.errstate(invalid="ignore"):
        gaps = np.abs(a.astype(np.float64) - b.astype(np.float64))
    # -0.0 and 0.0, or two NaNs, have other bytes but a gap of 0 or NaN: count by bytes
    wrong = (a.reshape(-1, 1).view(np.uint8) != b.reshape(-1, 1).view(np.uint8)).any(axis=1)
    largest = gaps.reshape(-1)[wrong].max()
    return f"{wrong.sum()} of {a.size} values differ, max abs difference {largest:.3g}"


def compare_models(a: Path, b: Path) -> str:
    """Name what differs first between two ONNX files whose bytes are not equal."""
    try:
        left, right = onnx.load(a), onnx.load(b)
    except (OSError, DecodeError, onnx.checker.ValidationError) as problem:
        return f"bytes differ, and a side cannot be read as ONNX: {problem}"
    difference = _compare_tensors(left, right) or _compare_nodes(left.graph, right.graph)
    if difference:
        return difference
    for field in MODEL_FIELDS:
        if getattr(left, field) != getattr(right, field):
            return f"{field} differs"
    for field in GRAPH_FIELDS:
        if getattr(left.graph, field) != getattr(right.graph, field):
            return f"graph.{field} differs"
    return "bytes differ although tensors, nodes and fields are equal (order or encoding)"


def compare_json(a: Json, b: Json, path: str = "") -> str | None:
    """Name the path of the first value that differs; None if all are equal, in the same order."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            inner = f"{path}.{key}" if key.isidentifier() else f"{path}[{json.dumps(key)}]"
            if key not in a or key not in b:
                return f"{inner.lstrip('.')} only in {'A' if key in a else 'B'}"
            difference = compare_json(a[key], b[key], inner)
            if difference:
                return difference
        return None if list(a) == list(b) else f"{path.lstrip('.') or 'keys'}: other order of keys"
    if isinstance(a, list) and isinstance(b, list):
        for index, (left, right) in enumerate(zip(a, b, strict=False)):
            difference = compare_json(left, right, f"{path}[{index}]")
            if difference:
                return difference
        lengths = f"{path.lstrip('.')}: {len(a)} entries in A, {len(b)} in B"
        return None if len(a) == len(b) else lengths
    # by text, which tells 1 from 1.0 and True, and finds NaN equal to itself
    left, right = json.dumps(a), json.dumps(b)
    if left == right:
        return None
    gap = ""
    if {type(a), type(b)} <= {int, float}:
        gap = f" (difference {abs(a - b):.3g})"
    return f"{path.lstrip('.')}: {left[:LONGEST_VALUE]} in A, {right[:LONGEST_VALUE]} in B{gap}"


def _list_files(folder: Path) -> set[str]:
    """Names, relative to the folder, of the files that are compared."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name.endswith(COMPARED) and path.name not in NOT_COMPARED
    }


def _compare_files(
    a: Path, b: Path, checkouts: tuple[Path, Path], ignored: Collection[str]
) -> str | None:
    """Describe the difference of two files of one name."""
    left, right = a.read_bytes(), b.read_bytes()
    if left == right:
        return None
    if a.name.endswith(MODEL):
        return compare_models(a, b)
    if a.name.endswith(EXTERNAL_DATA):
        return compare_models(a.with_suffix(""), b.with_suffix(""))
    if a.suffix == ".npz":
        return _compare_archives(a, b)
    try:
        documents = [_read_json(side) for side in (left, right)]
    except ValueError as problem:
        return f"bytes differ, and a side is not JSON: {problem}"
    stripped = [_strip(d, c, ignored) for d, c in zip(documents, checkouts, strict=True)]
    difference = compare_json(*stripped)
    # Nothing volatile inside, so the bytes had to be equal.
    if difference is None and stripped == documents:
        return "the same values in other bytes (spacing or escapes)"
    return difference


def _read_json(data: bytes) -> Json:
    """Parse a JSON document, or a list of the documents of a JSON Lines file."""
    text = data.decode()
    try:
        return json.loads(text)
    except ValueError:
        return [json.loads(line) for line in text.splitlines()]


def _strip(value: Json, checkout: Path, ignored: Collection[str]) -> Json:
    """Copy JSON without the ignored keys; paths below the checkout become file names."""
    if isinstance(value, dict):
        kept = {key: entry for key, entry in value.items() if key not in ignored}
        return {key: _strip(entry, checkout, ignored) for key, entry in kept.items()}
    if isinstance(value, list):
        return [_strip(entry, checkout, ignored) for entry in value]
    if isinstance(value, str):
        return re.sub(rf"{re.escape(str(checkout))}/(\S*/)?", "", value)
    return value


def _compare_archives(a: Path, b: Path) -> str:
    """Name the first array that differs between two .npz files whose bytes are not equal."""
    try:
        left, right = _read_arrays(a), _read_arrays(b)
    except (OSError, ValueError, zipfile.BadZipFile) as problem:
        return f"bytes differ, and a side cannot be read: {problem}"
    names = left.get("names", np.empty(0))  # of scores.npz: array "0" has the scores of names[0]
    for key in [*left, *(key for key in right if key not in left)]:
        if key not in left or key not in right:
            return f"array {key!r} only in {'A' if key in left else 'B'}"
        difference = compare_arrays(left[key], right[key])
        if difference:
            group = f" ({names[int(key)]})" if key.isdecimal() and int(key) < len(names) else ""
            return f"array {key!r}{group}: {difference}"
    return "bytes differ although the arrays are equal (order or encoding)"


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _compare_tensors(a: onnx.ModelProto, b: onnx.ModelProto) -> str | None:
    """Name the first initializer that differs, and how many others do."""
    left, right = ({t.name: t for t in model.graph.initializer} for model in (a, b))
    found = {}
    for name in [*left, *(name for name in right if name not in left)]:
        if name not in left or name not in right:
            found[name] = f"only in {'A' if name in left else 'B'}"
        elif left[name] != right[name]:
            arrays = (onnx.numpy_helper.to_array(side[name]) for side in (left, right))
            found[name] = compare_arrays(*arrays) or "the same values, stored in another way"
    if not found:
        return None
    name = next(iter(found))
    others = f"; {len(found) - 1} other tensors differ" if len(found) > 1 else ""
    return f"tensor {name!r}: {found[name]}{others}"


def _compare_nodes(a: onnx.GraphProto, b: onnx.GraphProto) -> str | None:
    """Name the first node that differs."""
    for index, (left, right) in enumerate(zip(a.node, b.node, strict=False)):
        if left.op_type != right.op_type or left.name != right.name:
            first, second = (f"{node.op_type} {node.name!r}" for node in (left, right))
            return f"node {index}: {first} in A, {second} in B"
        for field in NODE_FIELDS:
            if getattr(left, field) != getattr(right, field):
                return f"node {index} ({left.op_type} {left.name!r}): {field} differs"
    counts = f"{len(a.node)} nodes in A, {len(b.node)} in B"
    return None if len(a.node) == len(b.node) else counts
