"""Recipe: the options of a run and their parsers, stages, flags and help texts.

The fields of `Recipe` are at the same time the flags of the command line, the keys of a recipe
file and the keywords of `optimize`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxprune.data.presets import PRESETS
from onnxprune.parallel import MOST_THREADS, count_cpus
from onnxprune.run import parsers
from onnxprune.run.option import Option, check_keys, option_field, to_plain
from onnxprune.run.target import Target, parse_targets
from onnxprune.run.variant_options import VariantOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11

    from onnxprune.run.keywords import RecipeKeywords


@dataclass(frozen=True, kw_only=True)
class Recipe(VariantOptions):
    """Every option of a run, validated.

    Values are accepted as in a recipe file or on the command line (`target="macs=50%"`).

    Raises
    ------
    UsageError
        A value is out of range; the message names the option and what is allowed.
    """

    target: tuple[Target, ...] = option_field(
        (),
        parse_targets,
        "plan",
        "COST=AMOUNT",
        "Limit on what remains of a cost: macs=50% (default without --ratio), params=2x (half), "
        "bytes=1.5MB, activation_bytes=1MB or latency.ENGINE=1.5x; all given targets must hold.",
        repeatable=True,
    )
    max_divergence: float | None = option_field(
        None,
        parsers.optional(parsers.number(0, above=True)),
        "variants",
        "X",
        "Prune as far as the divergence (relative output error; for detectors, share of unmatched "
        "boxes) on inputs reserved for this stays within X; --target, if given, limits it as well.",
    )
    criterion: str = option_field(
        "auto",
        parsers.criterion,
        "score",
        "NAME",
        "Channel scoring criterion (list: onnxprune criteria); auto = reconstruction with data, "
        "l2 without.",
    )
    swaps: int = option_field(
        0,
        parsers.integer(0),
        "plan",
        "N",
        "Criterion reconstruction only: after selection, swap up to N channels per group if "
        "that lowers the reconstruction error.",
    )
    allocate: str = option_field(
        "auto",
        parsers.name_in("onnxprune.allocators", "ALLOCATORS"),
        "plan",
        "NAME",
        "Allocator that chooses the width of each group: uniform, threshold, knapsack, ... "
        "(list: onnxprune criteria); auto = divergence with data, knapsack without.",
    )
    method: str = option_field(
        "one-shot",
        parsers.name_in("onnxprune.search", "METHODS"),
        "plan",
        "NAME",
        "Planning method: one-shot (criterion and allocator, once) or an iterative search such "
        "as pagcp (list: onnxprune criteria).",
    )
    method_option: Mapping[str, str] = option_field(
        (),
        parsers.mapping(str),
        "plan",
        "NAME=VALUE",
        "Setting of the method, e.g. initial_rate=0.06.",
        repeatable=True,
    )
    losses: str | None = option_field(
        None,
        parsers.optional(parsers.function),
        "plan",
        "MODULE:FUNCTION",
        "Method pagcp: function (outputs, sample indices) -> {task: loss}; by default, each "
        "output head is a task whose loss is its distance from the original.",
    )
    repair: str = option_field(
        "auto",
        parsers.name_in("onnxprune.repair", "REPAIRS"),
        "repair",
        "NAME",
        "Method that compensates for removed channels; none disables it; auto = least-squares "
        "with data, none without.",
    )
    fast: bool = option_field(
        False,
        parsers.flag,
        "plan",
        "",
        "Choose widths by the error of single layers, not of the outputs, measured group by group.",
    )
    round_to: int | str | None = option_field(
        None,
        parsers.optional(parsers.integer_or_auto(1)),
        "plan",
        "N",
        "Round kept channel counts to multiples of N; auto = the block of --device, else of the "
        "engine, else onnxruntime's, or half of it. Default: auto with either, else 8.",
    )
    floor: int = option_field(
        1, parsers.integer(1), "plan", "N", "Minimum number of channels to keep in each group."
    )
    max_fraction: float = option_field(
        0.9, parsers.share, "plan", "SHARE", "Largest share of a group that may be removed."
    )
    blocks: bool = option_field(
        False,
        parsers.flag,
        "plan",
        "",
        "Method one-shot: allow removing entire branches of residual blocks, regardless of "
        "--max-fraction and --round-to.",
    )
    ratio: Mapping[str, float] = option_field(
        (),
        parsers.ratios,
        "plan",
        "GLOB=SHARE",
        "Remove this share of each matching group (0 = none), rounded only by --round-to if "
        "given; SHARE alone applies to all groups, [(2, 0.5), (6, 0.5)] to groups by number. "
        "Without --target, nothing else limits the costs.",
        repeatable=True,
    )
    freeze: tuple[str, ...] = option_field(
        (),
        parsers.globs,
        "analyze",
        "GLOB",
        "Tensors or nodes, by name pattern, whose channels are never removed.",
        repeatable=True,
    )
    allow_mixing: tuple[str, ...] = option_field(
        (),
        parsers.names,
        "analyze",
        "OP",
        "Also prune axes that OP mixes, e.g. LayerNormalization; the result is then not exact.",
        repeatable=True,
    )
    grouped: str = option_field(
        "both",
        parsers.choice("both", "group", "position"),
        "analyze",
        "POLICY",
        "Grouped convolutions: remove entire groups (group), the same position in every group "
        "(position), or both.",
    )
    untie: bool = option_field(
        False,
        parsers.flag,
        "analyze",
        "",
        "Prune each use of a shared weight on its own; the file then stores the weight once per "
        "use.",
    )
    strict: bool = option_field(
        False,
        parsers.flag,
        "analyze",
        "",
        "Fail on an operator without a rule instead of freezing the axes it touches.",
    )
    data: str | tuple[str, ...] | None = option_field(
        None,
        parsers.paths,
        "data",
        "PATH",
        "Calibration inputs: folder of images, .npz, .npy, 'pattern*', or loader.py:function; "
        "several are joined. Default: synthetic inputs.",
        repeatable=True,
    )
    samples: int | None = option_field(
        None,
        parsers.optional(parsers.integer(1)),
        "data",
        "N",
        "Most calibration inputs. Default: 2,048, of models above 100 million MACs fewer, at least "
        "256.",
    )
    flip: bool = option_field(
        False,
        parsers.flag,
        "data",
        "",
        "Images: also calibrate on the mirror image of every input; not for text or digits.",
    )
    batch_size: int = option_field(
        32, parsers.integer(1), "runtime", "N", "Batch size, if the model's batch axis is dynamic."
    )
    shape: Mapping[str, tuple[int, ...]] = option_field(
        (),
        parsers.input_shapes,
        "runtime",
        "NAME:1,3,224,224",
        "Shape of an input with dynamic axes (NAME: may be omitted if it is the only one), for "
        "calibration, measurement and counted costs; -1 keeps an axis dynamic.",
        repeatable=True,
    )
    batch_axis: Mapping[str, int | str] = option_field(
        (),
        parsers.batch_axes,
        "data",
        "NAME:AXIS",
        "Axis of an input that counts samples, or none; without NAME that of all inputs. Default: "
        "derived from the model.",
        repeatable=True,
    )
    resize: int | tuple[int, int] | str | None = option_field(
        None,
        parsers.optional(parsers.resize),
        "data",
        "HxW",
        "Images: resize to HxW, the shorter side to N, or letterbox: keep the aspect ratio and pad "
        "with gray. Default: the model's input size.",
    )
    crop: int | tuple[int, int] | None = option_field(
        None,
        parsers.optional(parsers.size),
        "data",
        "HxW",
        "Images: crop the center after the resize.",
    )
    interp: str = option_field(
        "bilinear",
        parsers.choice("nearest", "bilinear", "bicubic", "area"),
        "data",
        "NAME",
        "Images: interpolation method: nearest, bilinear, bicubic or area.",
    )
    order: str = option_field(
        "rgb",
        parsers.choice("rgb", "bgr"),
        "data",
        "ORDER",
        "Images: channel order that the model expects, rgb or bgr.",
    )
    preprocess: str | None = option_field(
        None,
        parsers.optional(parsers.choice(*PRESETS)),
        "data",
        "NAME",
        f"Images: values for --scale, --mean, --std, --post and --layout: {', '.join(PRESETS)} "
        "(yolo also sets --resize letterbox); those options override it.",
    )
    scale: float = option_field(
        1 / 255,
        parsers.number(0, above=True),
        "data",
        "X",
        "Images: the model receives (pixel * scale - mean) / std * post.",
    )
    mean: tuple[float, ...] = option_field(
        (0.0,), parsers.numbers, "data", "A,B,C", "Images: mean; one number, or one per channel."
    )
    std: tuple[float, ...] = option_field(
        (1.0,),
        parsers.numbers,
        "data",
        "A,B,C",
        "Images: standard deviation; one number, or one per channel.",
    )
    post: float = option_field(
        1.0,
        parsers.number(0, above=True),
        "data",
        "X",
        "Images: factor applied after normalization.",
    )
    layout: str = option_field(
        "auto",
        parsers.choice("auto", "nchw", "nhwc"),
        "data",
        "ORDER",
        "Images: position of the channel axis: auto, nchw or nhwc.",
    )
    seed: int = option_field(
        0,
        parsers.integer(0),
        "runtime",
        "N",
        "Random seed; equal seeds give byte-identical results.",
    )
    threads: int = option_field(
        0,
        parsers.integer(0, parsers.MOST_THREADS),
        "runtime",
        "N",
        "Threads that compute, with the same results for any number; 0 = one per CPU, at most "
        f"{MOST_THREADS}.",
    )
    tolerance: float | None = option_field(
        None,
        parsers.optional(parsers.number(0, above=True)),
        "verify",
        "X",
        "Largest relative difference from the masked original that passes verification. "
        "Default: the rounding error of the model's type, 1e-5 for float32.",
    )
    metric: tuple[str, ...] = option_field(
        (),
        parsers.renamed(parsers.functions, parsers.METRIC_NAMES),
        "evaluate",
        "NAME",
        "Metric to evaluate both models with on labeled inputs: top1, top5, miou, coco, psnr, "
        "... or module:function.",
        repeatable=True,
    )
    labeled: str | None = option_field(
        None,
        parsers.optional(parsers.source),
        "evaluate",
        "PATH",
        "Labels for --metric: .npz, COCO JSON, YOLO, Pascal VOC, masks, a table, or a folder per "
        "class. A quarter selects among candidates (see --candidate), the rest is for the report.",
    )
    decoder: str | None = option_field(
        None,
        parsers.optional(parsers.function),
        "evaluate",
        "NAME",
        "Decoder of a detector's raw outputs: a name such as yolov8 (list: onnxprune criteria), or "
        "module:function. Default: recognized from the outputs.",
    )
    class_offset: int = option_field(
        0,
        parsers.integer(0),
        "evaluate",
        "N",
        "Number of outputs before class 0: 1 if output 0 is a background class.",
    )
    engine: tuple[str, ...] = option_field(
        ("onnxruntime",),
        parsers.renamed(parsers.names, parsers.ENGINE_NAMES),
        "measure",
        "NAME",
        "Engine to measure latency on (list: onnxprune engines); none disables it.",
        repeatable=True,
    )
    seconds: float = option_field(
        2.0,
        parsers.number(0, above=True),
        "measure",
        "S",
        "Most seconds to measure per model and engine.",
    )
    precision: str = option_field(
        "f32",
        parsers.precision,
        "measure",
        "NAME",
        "Precision of the engines: f32, bf16, f16 or int8.",
    )
    bench_threads: int = option_field(
        1,
        parsers.integer(1, parsers.MOST_THREADS),
        "measure",
        "N",
        "Threads per inference of the CPU engines that are measured.",
    )
    pin: tuple[int, ...] = option_field(
        (),
        parsers.counts,
        "measure",
        "CPU",
        "CPUs to pin measurements to, e.g. 0 or 0,1.",
        repeatable=True,
    )
    external_data: bool | None = option_field(
        None,
        parsers.optional(parsers.flag),
        "write",
        "",
        "Store weights next to the graph, in OUT.HASH.data. Default: only above 2 GB.",
    )

    if TYPE_CHECKING:
        # the fields have the parsed types; keywords also accept what recipe files and flags do
        def __init__(self, **options: Unpack[RecipeKeywords]) -> None: ...

    def __post_init__(self) -> None:
        """Parse every value."""
        for name, option in OPTIONS.items():
            object.__setattr__(self, name, option.validate(name, getattr(self, name)))

    @staticmethod
    def of(values: Mapping[str, Any], where: str = "recipe") -> Recipe:
        """Return the recipe with these values.

        Raises
        ------
        UsageError
            A key does not exist; the message suggests the closest one. `where` names its source.
        """
        return Recipe(**check_keys(values, where, OPTIONS))

    def but(self, values: Mapping[str, Any], where: str = "options") -> Recipe:
        """Return a copy with some values replaced."""
        return dataclasses.replace(self, **check_keys(values, where, OPTIONS))

    @property
    def compute_threads(self) -> int:
        """Number of threads that compute on this machine."""
        return self.threads or min(count_cpus(), MOST_THREADS)

    def plain(self, stage: str | None = None) -> dict[str, Any]:
        """Return the options (of one stage) as JSON and TOML values; None is left out."""
        values = {
            name: to_plain(getattr(self, name))
            for name, option in OPTIONS.items()
            if stage in (None, option.stage)
        }
        return {name: value for name, value in values.items() if value is not None}


OPTIONS: Mapping[str, Option] = {f.name: f.metadata["option"] for f in dataclasses.fields(Recipe)}
