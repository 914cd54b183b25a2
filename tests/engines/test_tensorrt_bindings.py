"""Names of TensorRT and CUDA that the engine uses exist in the published bindings.

They exist in both major versions or are guarded by hasattr. The bindings install without a GPU; the
three libraries that they load are stubs that this test builds from C.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxprune.engines import cuda, tensorrt

pytestmark = pytest.mark.slow  # the first run downloads the wheels

WHEELS = {10: "tensorrt_cu12_bindings>=10.16,<11", 11: "tensorrt_cu13_bindings>=11.4,<12"}
CUDA_WHEELS = ("cuda-bindings>=12,<14", "cuda-pathfinder")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
STUBS = "".join(
    f"void *{name}(void) {{ return 0; }}\n"
    for name in (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getBuilderPluginRegistry",
        "getNvOnnxParserVersion",
        "getPluginRegistry",
        "initLibNvInferPlugins",
    )
)
# what each variable of the engine's code holds; a call is written with "()"
CLASSES = {
    "trt": "",
    "self._trt": "",
    "tensorrt": "",
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "flags": "BuilderFlag",
    "self._runtime": "Runtime",
    "engine": "ICudaEngine",
    "self._engine": "ICudaEngine",
    "context": "IExecutionContext",
    "self._context": "IExecutionContext",
    "inspector": "EngineInspector",
    "parser.get_error()": "ParserError",
    "config.get_timing_cache()": "ITimingCache",
}
GUARDED = {
    "ICudaEngine.device_memory_size",
    "BuilderFlag.FP16",
    "BuilderFlag.BF16",
    "BuilderFlag.INT8",
    "BuilderFlag.TF32",
}


def used() -> set[str]:
    """Dotted names below the tensorrt module that the engine's source reaches."""
    names = set()
    for node in ast.walk(ast.parse(Path(tensorrt.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and (owner := spelled(node.value)) is not None:
            for start, kind in CLASSES.items():
                if owner == start or (kind == "" and owner.startswith(start + ".")):
                    inner = owner[len(start) + 1 :]
                    names.add(".".join(filter(None, (kind, inner, node.attr))))
    return {name for name in names if not name.startswith("__")}


def spelled(node: ast.AST) -> str | None:
    """Return the text of an expression of names, attributes and calls, such as a.b()."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{owner}.{node.attr}" if (owner := spelled(node.value)) is not None else None
    if isinstance(node, ast.Call):
        return f"{owner}()" if (owner := spelled(node.func)) is not None else None
    return None


def guards() -> Iterator[str]:
    """The names in hasattr(x, "name"), and the flags that a loop asks for so."""
    for node in ast.walk(ast.parse(Path(tensorrt.__file__).read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "hasattr"
            and isinstance(node.args[1], ast.Constant)
        ):
            yield str(node.args[1].value)
    yield from (flag for flags in tensorrt._FLAGS.values() for flag in flags)


@pytest.fixture(scope="module")
def download(request: pytest.FixtureRequest):
    """A function: requirements -> a folder with their wheels unpacked; kept between runs."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("the bindings are taken for Linux on x86_64")

    def fetch(name: str, *requirements: str) -> Path:
        folder = Path(
            request.config.cache.mkdir(
                f"wheels-{name}-{sys.version_info.major}{sys.version_info.minor}"
            )
        )
        if not list(folder.glob("*.whl")):
            command = [
                sys.executable,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--only-binary=:all:",
                "--dest",
                str(folder),
                *requirements,
            ]
            done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
            if done.returncode != 0:
                shutil.rmtree(folder)
                reasons = done.stderr.strip().splitlines() or ["no reason given"]
                pytest.skip(f"cannot download {', '.join(requirements)}: {reasons[-1]}")
        return folder

    return fetch


def unpack(wheels: Path, target: Path) -> None:
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)


def existing(folder: Path, module: str, names: set[str]) -> tuple[str, set[str]]:
    """Return (version, dotted names that the module has), by a fresh interpreter."""
    code = (
        "import functools, importlib, json, sys\n"
        "module = importlib.import_module(sys.argv[1])\n"
        "def has(name):\n"
        "    try: functools.reduce(getattr, name.split('.'), module)\n"
        "    except AttributeError: return False\n"
        "    return True\n"
        "names = [n for n in json.loads(sys.argv[2]) if has(n)]\n"
        "print(json.dumps([getattr(module, '__version__', ''), names]))\n"
    )
    command = [sys.executable, "-c", code, module, json.dumps(sorted(names))]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )
    version, present = json.loads(done.stdout.splitlines()[-1])
    return version, set(present)


@pytest.fixture(params=WHEELS)
def bindings(request: pytest.FixtureRequest, download, tmp_path: Path) -> tuple[int, Path]:
    """(major, folder to import tensorrt_bindings from)."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler for the stub libraries")
    major = int(request.param)
    unpack(download(f"tensorrt{major}", WHEELS[major]), tmp_path)
    source = tmp_path / "stubs.c"
    source.write_text(STUBS)
    for library in LIBRARIES:
        name = f"lib{library}.so.{major}"
        subprocess.run(
            [
                compiler,
                "-shared",
                "-fPIC",
                f"-Wl,-soname,{name}",
                "-o",
                str(tmp_path / "tensorrt_bindings" / name),
                str(source),
            ],
            check=True,
            timeout=60,
        )
    return major, tmp_path


def test_names_exist_in_both_majors_or_are_guarded(bindings: tuple[int, Path]) -> None:
    major, folder = bindings
    names = used()
    assert {
        "Builder.build_serialized_network",
        "OnnxParser.parse_from_file",
        "IExecutionContext.execute_async_v3",
        "BuilderFlag.TF32",
    } <= names
    version, present = existing(folder, "tensorrt_bindings", names | GUARDED)
    assert version.startswith(f"{major}.")
    assert names - present <= GUARDED, (
        f"TensorRT {version} lacks {sorted(names - present - GUARDED)}"
    )
    assert {name.rpartition(".")[2] for name in GUARDED - present} <= set(guards()), (
        "used without hasattr"
    )


def test_version_10_has_the_flags_and_version_11_has_not(bindings: tuple[int, Path]) -> None:
    major, folder = bindings
    flags = {f"BuilderFlag.{name}" for names in tensorrt._FLAGS.values() for name in names}
    _, present = existing(folder, "tensorrt_bindings", flags)
    assert present == (flags if major == 10 else set())


def test_cuda_python_has_every_call(download, tmp_path: Path) -> None:
    unpack(download("cuda", *CUDA_WHEELS), tmp_path)
    source = Path(cuda.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r'"(cuda[A-Z]\w+)"', source)) | set(
        re.findall(r"_api\.(cuda[\w.]+)", source)
    )
    assert "cudaGraphLaunch" in names and "cudaMemcpyKind.cudaMemcpyHostToDevice" in names
    _, present = existing(tmp_path, "cuda.bindings.runtime", names)
    assert present == names
