"""Recipes, plans, reports and journals that are long, deep, or name large numbers."""

from __future__ import annotations

from pathlib import Path

from tests.robustness.attack_list import MODEL, OUTPUT, attack, optimize


def _text(folder: Path, name: str, text: str, *command: str) -> list[str]:
    (folder / name).write_text(text)
    return list(command)


@attack("threads = 1,000,000 in a recipe")
def threads(folder: Path) -> list[str]:
    command = optimize(MODEL, "--recipe=r.toml")
    return _text(folder, "r.toml", "threads = 1000000", *command)


@attack("samples = 2^62 in a recipe")
def samples(folder: Path) -> list[str]:
    command = ["optimize", str(MODEL), "-o", OUTPUT, "--recipe=r.toml", "--engine=none"]
    return _text(folder, "r.toml", f"samples = {1 << 62}", *command)


@attack("a recipe nested 100,000 deep")
def deep_recipe(folder: Path) -> list[str]:
    text = "target = " + "[" * 100_000
    return _text(folder, "r.toml", text, *optimize(MODEL, "--recipe=r.toml"))


@attack("a recipe of 30 MB of keys")
def long_recipe(folder: Path) -> list[str]:
    text = "".join(f"k{i} = 1\n" for i in range(2_500_000))
    return _text(folder, "r.toml", text, *optimize(MODEL, "--recipe=r.toml"))


@attack("a recipe with an integer of 30 million digits")
def long_number(folder: Path) -> list[str]:
    text = "threads = " + "9" * 30_000_000
    return _text(folder, "r.toml", text, *optimize(MODEL, "--recipe=r.toml"))


@attack("a recipe with 5,000,000 empty lists")
def lists(folder: Path) -> list[str]:
    text = "target = [" + "[]," * 5_000_000 + "]"
    return _text(folder, "r.toml", text, *optimize(MODEL, "--recipe=r.toml"))


def _plan(folder: Path, text: str) -> list[str]:
    return _text(folder, "plan.json", text, "cut", str(MODEL), "plan.json", "-o", OUTPUT)


@attack("a plan nested 15,000,000 deep")
def deep_plan(folder: Path) -> list[str]:
    return _plan(folder, '{"groups": ' + "[" * 15_000_000)


@attack("a plan of 11 million empty objects")
def wide_plan(folder: Path) -> list[str]:
    return _plan(folder, '{"groups": [' + "{}," * 11_000_000 + "{}]}")


@attack("a plan that keeps 15 million channels")
def long_plan(folder: Path) -> list[str]:
    kept = ",".join("0" for _ in range(15_000_000))
    return _plan(
        folder,
        f'{{"format": 1, "source": "", "groups": {{"a": {{"size": 9, "kept": [{kept}]}}}}}}',
    )


@attack("a plan of 1 GB")
def huge_plan(folder: Path) -> list[str]:
    with (folder / "plan.json").open("wb") as file:
        file.truncate(10**9)
    return ["cut", str(MODEL), "plan.json", "-o", OUTPUT]


@attack("a report nested 15,000,000 deep")
def deep_report(folder: Path) -> list[str]:
    return _text(folder, "report.json", "[" * 15_000_000, "report", "report.json")


@attack("a journal of 1 GB without an end of line")
def journal(folder: Path) -> list[str]:
    run = folder / "out.run"
    run.mkdir()
    (run / "lock").write_bytes(b"onnxprune run directory\n")
    with (run / "journal.jsonl").open("wb") as file:
        file.truncate(10**9)
    return optimize(MODEL)


@attack("a journal of 300,000 stages")
def stages(folder: Path) -> list[str]:
    run = folder / "out.run"
    run.mkdir()
    (run / "lock").write_bytes(b"onnxprune run directory\n")
    row = '{"stage": "score", "key": "k", "files": {}, "facts": {}, "seconds": 1}\n'
    (run / "journal.jsonl").write_text(row * 300_000)
    return optimize(MODEL)
