"""Types of the keywords of `optimize`, one per field of `Recipe`, for editors and type checkers.

A test compares names, defaults and types with the fields and their parsers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from onnxprune.data.objects import Samples

Path = str | os.PathLike[str]
Names = str | Sequence[str]  # one, several, or a text with commas
Share = float | str  # 0.5 or "50%"
Numbers = float | Sequence[float] | str
Size = int | Sequence[int] | str  # 256, (224, 320) or "224x320"
# (outputs, labels) -> one value per sample; or a class of metrics
MetricFunction = Callable[..., Any]


class RecipeKeywords(TypedDict, total=False):
    """Keywords of `optimize`; what each does is documented with `Recipe`."""

    device: str | None
    quantize: str | None
    quantize_form: str
    quantize_calibrate: str
    quantize_exclude: Names
    low_rank: bool
    candidate: Names
    thorough: bool
    curve: bool
    control: int
    target: str | Sequence[str]
    max_divergence: float | None
    criterion: str
    swaps: int
    allocate: str
    method: str
    method_option: Mapping[str, str | float] | Names
    losses: str | Callable[..., Any] | None
    repair: str
    fast: bool
    round_to: int | str | None
    floor: int
    max_fraction: Share
    blocks: bool
    ratio: Mapping[str, Share] | Share | Sequence[str | tuple[int, float]]
    freeze: Names
    allow_mixing: Names
    grouped: str
    untie: bool
    strict: bool
    data: Path | Sequence[Path] | Samples | None
    samples: int | None
    flip: bool
    batch_size: int
    shape: Mapping[str, Sequence[int] | str] | Names
    batch_axis: Mapping[str, int | str] | int | Names
    resize: Size | None
    crop: Size | None
    interp: str
    order: str
    preprocess: str | None
    scale: float
    mean: Numbers
    std: Numbers
    post: float
    layout: str
    seed: int
    threads: int
    tolerance: float | None
    metric: str | MetricFunction | Sequence[str | MetricFunction]
    labeled: Path | Samples | None
    decoder: str | Callable[..., Any] | None
    class_offset: int
    engine: Names
    seconds: float
    precision: str
    bench_threads: int
    pin: int | Sequence[int] | str
    external_data: bool | None
