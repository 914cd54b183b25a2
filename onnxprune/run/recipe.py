"""Everything that a run can be told, once: the fields of `Recipe` are the flags of the command line, the keys of a recipe file
and the keywords of `optimize`.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune import RENAMED_OPTIONS
from onnxprune.data import DATA_SOURCES
from onnxprune.errors import UsageError, unknown
from onnxprune.run import parsers as options

COSTS = ("macs", "params", "bytes", "activation_bytes", "latency")
PROVENANCE = (
    "provenance"  # table of a resolved recipe that says where it came from; ignored when read
)
_SUFFIXES = {
    "": 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_QUANTITY = re.compile(r"\s*([0-9.]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)\s*")


@dataclass(frozen=True)
class Target:
    """The most that may remain of one cost.

    cost: one of COSTS; engine: of a latency, else ""; limit: a share of the original in (0, 1] where `relative`,
    else MACs, parameters, bytes or milliseconds; text: as it was written.
    """

    cost: str
    limit: float
    relative: bool
    engine: str = ""
    text: str = dataclasses.field(default="", compare=False)

    def __str__(self) -> str:
        return self.text

    def ceiling(self, original: float) -> float:
        """What may remain of a cost that was `original`.

        >>> Target.parse("macs=2x").ceiling(10)
        5.0
        """
        return self.limit * original if self.relative else self.limit

    @staticmethod
    def parse(value: str | Target) -> Target:
        """Read COST=AMOUNT: `macs=50%` remain, `macs=2x` fewer, `bytes=1.5MB`, `latency.ENGINE=3ms`; ValueError otherwise."""
        if isinstance(value, Target):
            return value
        if not isinstance(value, str) or "=" not in value:
            raise ValueError(
                f"{value!r} is not COST=AMOUNT such as macs=50%, params=2x, bytes=1.5MB, latency.onnxruntime=1.5x"
            )
        name, _, amount = (part.strip() for part in value.partition("="))
        cost, _, engine = name.partition(".")
        if cost not in COSTS:
            raise ValueError(unknown("cost", cost, COSTS).message)
        if (cost == "latency") != bool(engine):
            raise ValueError(
                f"{name!r}: a latency names its engine (latency.onnxruntime=1.5x), other costs name none"
            )
        limit, relative = _amount(cost, amount)
        return Target(cost, limit, relative, engine, f"{name}={amount}")


def _amount(cost: str, amount: str) -> tuple[float, bool]:
    """(limit, relative) of the right side of a target."""
    match = _QUANTITY.fullmatch(amount)
    try:
        value, unit = float(match[1]), match[2]  # type: ignore[index]
    except (TypeError, ValueError):
        raise ValueError(f"{amount!r} is not an amount such as 50%, 2x or 1.5M") from None
    if unit in ("%", "x"):
        limit = value / 100 if unit == "%" else (1 / value if value else 0.0)
        if not 0 < limit <= 1:
            raise ValueError(
                f"{amount!r} of {cost} is out of range: what remains is above 0% and at most 100%, a factor is at least 1x"
            )
        return limit, True
    units = _MILLISECONDS if cost == "latency" else _SUFFIXES
    if unit not in units:
        raise ValueError(
            f"{amount!r} has unknown unit {unit!r}; known: %, x, {', '.join(u for u in units if u)}"
        )
    if value * units[unit] < 1 and cost != "latency" or value <= 0:
        raise ValueError(
            f"{amount!r} of {cost} is less than one; for a share of the original write {value * 100:g}%"
        )
    return value * units[unit], False


def targets(value: Any) -> tuple[Target, ...]:
    """Targets, from text, a list of texts, or a table cost -> amount."""
    if isinstance(value, Mapping):
        value = [f"{cost}={amount}" for cost, amount in value.items()]
    found = tuple(Target.parse(v) for v in ([value] if isinstance(value, (str, Target)) else value))
    costs = [(t.cost, t.engine) for t in found]
    if len(set(costs)) < len(costs):
        raise ValueError("there are several targets of one cost; give one a cost")
    return found


@dataclass(frozen=True)
class Option:
    """How one field of Recipe is read and described.

    parse: from text or a plain value, ValueError where it does not fit; stage: the first one that depends on it;
    help: one sentence; metavar: of its flag; kind: "value", "flag" or "list" (a flag that may be repeated).
    """

    parse: Callable[[Any], Any]
    stage: str
    help: str
    metavar: str
    kind: str = "value"


def _option(
    default: Any,
    parse: Callable[[Any], Any],
    stage: str,
    metavar: str,
    help: str,
    kind: str = "value",
) -> Any:
    return dataclasses.field(
        default=default, metadata={"option": Option(parse, stage, help, metavar, kind)}
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every option of a run, checked.

    Values are given as in a recipe file or on the command line (`target="macs=50%"`) and held parsed.

    Raises
    ------
    UsageError
        A value is out of range; it says which and what is allowed.
    """

    target: tuple[Target, ...] = _option(
        (),
        targets,
        "plan",
        "COST=AMOUNT",
        "What may remain: macs=50% (where nothing is said), params=2x (half), bytes=1.5MB, activation_bytes=.., latency.ENGINE=1.5x; several hold together.",
        "list",
    )
    max_divergence: float | None = _option(
        None,
        options.optional(options.number(0, above=True)),
        "variants",
        "X",
        "Cut as much as keeps the outputs within this relative error on inputs that chose and fitted nothing else, and no more than --target where there is one.",
    )
    criterion: str = _option(
        "auto",
        options.criterion,
        "score",
        "NAME",
        "How channels are scored, see: onnxprune criteria; auto = the best with data, l2 without.",
    )
    swaps: int = _option(
        0,
        options.integer(0),
        "plan",
        "N",
        "Criterion reconstruction: exchange at most N channels of each group for others in the end, where its readers' error shrinks by it.",
    )
    allocate: str = _option(
        "auto",
        options.name_in("onnxprune.allocators", "ALLOCATORS"),
        "plan",
        "NAME",
        "How widths are chosen: uniform, threshold, knapsack, ...; auto = the best with data, knapsack without.",
    )
    method: str = _option(
        "one-shot",
        options.name_in("onnxprune.search", "METHODS"),
        "plan",
        "NAME",
        "How the plan is found: one-shot (criterion and allocator, once), or a search: pagcp, ...; see: onnxprune criteria.",
    )
    method_option: Mapping[str, str] = _option(
        (),
        options.mapping(lambda value: str(value)),
        "plan",
        "NAME=VALUE",
        "A setting of the method, such as initial_rate=0.06.",
        "list",
    )
    losses: str | None = _option(
        None,
        options.optional(options.text),
        "plan",
        "MODULE:FUNCTION",
        "Method pagcp: (outputs, indices of the samples) -> task: loss; without it every output head is a task, measured against the dense model.",
    )
    repair: str = _option(
        "auto",
        options.name_in("onnxprune.repair", "REPAIRS"),
        "repair",
        "NAME",
        "How the kept weights make up for the removed ones; none = not; auto = the best with data, none without.",
    )
    fast: bool = _option(
        False,
        options.flag,
        "plan",
        "",
        "Choose widths by the error of layers instead of running the model for every group.",
        "flag",
    )
    round_to: int | str | None = _option(
        None,
        options.optional(options.whole_or_auto(1)),
        "plan",
        "N",
        "Kept channel counts are multiples of N; auto = of the engine's block, or half of one; by default 8, and auto with a target on latency.",
    )
    floor: int = _option(
        1, options.integer(1), "plan", "N", "Channels that stay in every group at the least."
    )
    max_fraction: float = _option(
        0.9, options.share, "plan", "SHARE", "Largest share of a group that may go."
    )
    blocks: bool = _option(
        False,
        options.flag,
        "plan",
        "",
        "Method one-shot: whole branches of residual blocks may go, whatever --max-fraction and --round-to say.",
        "flag",
    )
    ratio: Mapping[str, float] = _option(
        (),
        options.ratios,
        "plan",
        "GLOB=SHARE",
        "Remove exactly this share of the groups with a matching name (0 = leave whole); also SHARE for all, or [(2, 0.5), (6, 0.5)] by numbers of groups.",
        "list",
    )
    freeze: tuple[str, ...] = _option(
        (), options.globs, "analyze", "GLOB", "Tensors or nodes whose channels stay.", "list"
    )
    allow_mixing: tuple[str, ...] = _option(
        (),
        options.names,
        "analyze",
        "OP",
        "Open axes that OP mixes, such as LayerNormalization; the result is then not exact.",
        "list",
    )
    grouped: str = _option(
        "both",
        options.choice("both", "group", "position"),
        "analyze",
        "POLICY",
        "Grouped convolutions: drop whole groups, the same position of each, or both.",
    )
    strict: bool = _option(
        False,
        options.flag,
        "analyze",
        "",
        "Fail on an operator without a rule instead of freezing what it touches.",
        "flag",
    )
    data: str | None = _option(
        None,
        options.optional(options.text),
        "data",
        "PATH",
        "Calibration inputs: folder of images, .npz, .npy, or loader.py:function; none = synthetic.",
    )
    samples: int = _option(256, options.integer(1), "data", "N", "Calibration inputs used.")
    flip: bool = _option(
        False,
        options.flag,
        "data",
        "",
        "Images: learn from every input mirrored left to right as well; not for text or digits.",
        "flag",
    )
    batch_size: int = _option(
        32,
        options.integer(1),
        "runtime",
        "N",
        "Inputs a run where the model's batch axis allows it.",
    )
    shape: Mapping[str, tuple[int, ...]] = _option(
        (),
        options.mapping(options.shape, ":"),
        "runtime",
        "NAME:1,3,224,224",
        "Shape of an input with dynamic axes, for calibration and measuring.",
        "list",
    )
    resize: int | tuple[int, int] | None = _option(
        None,
        options.optional(options.size),
        "data",
        "HxW",
        "Images: stretch to HxW, or the shorter side to N; by default to the model's input.",
    )
    crop: int | tuple[int, int] | None = _option(
        None,
        options.optional(options.size),
        "data",
        "HxW",
        "Images: cut out the center after the resize.",
    )
    interp: str = _option(
        "bilinear",
        options.choice("nearest", "bilinear", "bicubic", "area"),
        "data",
        "NAME",
        "Images: how to resize: nearest, bilinear, bicubic, area.",
    )
    order: str = _option(
        "rgb",
        options.choice("rgb", "bgr"),
        "data",
        "ORDER",
        "Images: order of the model's color channels, rgb or bgr.",
    )
    scale: float = _option(
        1 / 255,
        options.number(0, above=True),
        "data",
        "X",
        "Images: the model takes (pixel * scale - mean) / std * post.",
    )
    mean: tuple[float, ...] = _option(
        (0.0,),
        options.numbers,
        "data",
        "A,B,C",
        "Images: one number, or one a channel of the model.",
    )
    std: tuple[float, ...] = _option(
        (1.0,),
        options.numbers,
        "data",
        "A,B,C",
        "Images: one number, or one a channel of the model.",
    )
    post: float = _option(
        1.0, options.number(0, above=True), "data", "X", "Images: factor at the end of the formula."
    )
    layout: str = _option(
        "auto",
        options.choice("auto", "nchw", "nhwc"),
        "data",
        "ORDER",
        "Images: where the channel axis is, auto, nchw or nhwc.",
    )
    seed: int = _option(
        0,
        options.integer(0),
        "runtime",
        "N",
        "Of everything random; the same seed gives the same bytes.",
    )
    threads: int = _option(1, options.integer(1), "runtime", "N", "Threads of onnxruntime.")
    tolerance: float | None = _option(
        None,
        options.optional(options.number(0, above=True)),
        "verify",
        "X",
        "Largest relative difference to the masked original that passes; by default as the model's type rounds, 1e-5 in float32.",
    )
    metric: tuple[str, ...] = _option(
        (),
        options.names,
        "evaluate",
        "NAME",
        "Measure both models with labels: top1, top5, miou, coco, psnr, ... or module:function.",
        "list",
    )
    labeled: str | None = _option(
        None,
        options.optional(options.text),
        "evaluate",
        "PATH",
        "Labeled inputs for --metric: .npz, or a folder with one subfolder a class. A quarter chooses between candidates, see --candidate; the rest only measures.",
    )
    candidate: tuple[str, ...] = _option(
        "auto",
        options.candidates,
        "variants",
        "CRITERION+ALLOCATOR",
        "Another way to the same target, taken where the first --metric is better by more than its standard error on labels that are not reported; "
        "none = no others; auto = a few where criterion and allocator are auto too.",
        "list",
    )
    curve: bool = _option(
        False,
        options.flag,
        "variants",
        "",
        "Also make and measure models of 80, 70, 60, 50 and 40 % of the MACs: the trade-off in the report.",
        "flag",
    )
    control: int = _option(
        0,
        options.integer(0),
        "variants",
        "N",
        "Also repair and measure N models of the same widths whose channels were drawn at random: what choosing them was worth.",
    )
    decoder: str | None = _option(
        None,
        options.optional(options.text),
        "evaluate",
        "MODULE:FUNCTION",
        "Boxes from the raw outputs of a detector.",
    )
    class_offset: int = _option(
        0,
        options.integer(0),
        "evaluate",
        "N",
        "Outputs before class 0: 1 where output 0 is a background class.",
    )
    engine: tuple[str, ...] = _option(
        ("onnxruntime",),
        options.names,
        "measure",
        "NAME",
        "Engines to measure on; none = do not measure.",
        "list",
    )
    seconds: float = _option(
        2.0,
        options.number(0, above=True),
        "measure",
        "S",
        "Measuring time of each model on each engine.",
    )
    precision: str = _option(
        "f32",
        options.choice("f32", "bf16", "f16", "int8"),
        "measure",
        "NAME",
        "Of the engines: f32, bf16, f16 or int8.",
    )
    pin: tuple[int, ...] = _option(
        (),
        options.counts,
        "measure",
        "CPU",
        "CPUs that measuring is pinned to, such as 0 or 0,1.",
        "list",
    )
    external_data: bool | None = _option(
        None,
        options.optional(options.flag),
        "write",
        "",
        "Put weights into OUT.data beside the graph; by default only over 2 GB.",
        "flag",
    )

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, _parsed(name, option, getattr(self, name)))

    @staticmethod
    def of(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """The recipe with these values; UsageError for a key that does not exist, with the nearest that does."""
        return Recipe(**_checked(values, where))

    def but(self, values: Mapping[str, Any], where: str = "options") -> Recipe:
        """A copy with some values replaced."""
        return dataclasses.replace(self, **_checked(values, where))

    def plain(self, stage: str | None = None) -> dict[str, Any]:
        """The options (of one stage) as JSON and TOML can hold them; what is None is left out."""
        chosen = {
            n: _plain(getattr(self, n)) for n, o in OPTIONS.items() if stage in (None, o.stage)
        }
        return {n: v for n, v in chosen.items() if v is not None}


_CODE_KEYS = frozenset(("data", "metric", "losses", "decoder"))  # may name a function of the user's
OPTIONS: Mapping[str, Option] = {f.name: f.metadata["option"] for f in dataclasses.fields(Recipe)}


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The values in a TOML recipe, unparsed and with keys checked; `data` is taken relative to the file.

    Raises
    ------
    UsageError
        Not readable, not TOML, or an unknown key.
    """
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(
            "recipe-unreadable", f"cannot read recipe {path}: {problem.strerror}"
        ) from problem
    except (ValueError, RecursionError) as problem:
        raise UsageError("recipe-not-toml", f"recipe {path} is not TOML: {problem}") from problem
    values.pop(PROVENANCE, None)
    values = _checked(values, f"recipe {path}")
    if isinstance(values.get("data"), str):
        values["data"] = _beside(os.path.dirname(os.fspath(path)), values["data"])
    return values


def read_data_only(path: str | os.PathLike[str], given: Collection[str] = ()) -> dict[str, Any]:
    """What `read` gives, without the keys in `given`, which win over the file.

    Raises
    ------
    UsageError
        A value names Python code: a recipe is data, and what it runs must be named by who runs it.
    """
    values = {name: value for name, value in read(path).items() if name not in given}
    for name in _CODE_KEYS & values.keys():
        texts = [
            str(t) for t in (values[name] if isinstance(values[name], list) else [values[name]])
        ]
        code = [
            t
            for t in texts
            if (
                re.search(r"\.py:\w*$", t) or t.startswith("loader:")
                if name == "data"
                else ":" in t
            )
        ]
        if code:
            raise UsageError(
                "recipe-code",
                f"recipe {path}: {name} names Python code, {code[0]!r}; a recipe is data only: give it as --{name} {code[0]}",
            )
    return values


def to_toml(recipe: Recipe, provenance: Mapping[str, str] | None = None) -> str:
    """The recipe as a file that `read` takes, with a table of where it came from."""
    lines, tables = [], []
    for name, value in recipe.plain().items():
        if isinstance(value, dict):
            tables += (
                ["", f"[{name}]", *(f"{_toml(k)} = {_toml(v)}" for k, v in value.items())]
                if value
                else []
            )
        else:
            lines.append(f"{name} = {_toml(value)}")
    if provenance:
        tables += ["", f"[{PROVENANCE}]", *(f"{k} = {_toml(v)}" for k, v in provenance.items())]
    return "\n".join([*lines, *tables]) + "\n"


def _beside(folder: str, spec: str) -> str:
    """A data specification whose path is taken from `folder`; NAME:PATH names a data source."""
    name, colon, place = spec.partition(":")
    if spec in DATA_SOURCES and not os.path.exists(os.path.join(folder, spec)):
        return spec
    return (
        f"{name}:{os.path.join(folder, place)}"
        if colon and name in DATA_SOURCES
        else os.path.join(folder, spec)
    )


def _checked(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the values under today's names; raise UsageError for a key that does not exist."""
    values = {RENAMED_OPTIONS.get(key, key): value for key, value in values.items()}
    for key in values:
        if key not in OPTIONS:
            problem = unknown("key", key, OPTIONS)
            raise UsageError("unknown-key", f"{where}: {problem.message}")
    return values


def _parsed(name: str, option: Option, value: Any) -> Any:
    try:
        return option.parse(value)
    except (ValueError, TypeError) as problem:
        raise UsageError("option-value", f"{name}: {problem}") from problem


def _plain(value: Any) -> Any:
    if isinstance(value, Target):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
