"""Generate the parts of the documents that follow from the code.

usage: python tools/generate_docs.py [--check]

Replaces the text between `<!-- generated: NAME -->` and `<!-- end of generated -->` in docs/
by the result of the function NAME in SECTIONS. --check changes nothing and fails if a
document is not up to date.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from onnxprune.analysis.rule import Attributes

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "onnxprune"
_SECTION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end of generated -->)", re.DOTALL)
OPSET = 21  # of the examples in the table of operators
HELP_WIDTH = 110  # columns
USAGE, ENVIRONMENT = 2, 1  # exit codes
_MOST_MESSAGE = 240  # characters of a message that the list of errors shows


class Failure(NamedTuple):
    """An error that the source raises.

    Attributes
    ----------
    code
        Error code.
    exit_code
        Exit status of the command line.
    message
        First line, values as {names}.
    """

    code: str
    exit_code: int
    message: str


@dataclass
class Typical(Attributes):
    """A typical node of an operator whose pattern depends on attributes: three axes."""

    op: str
    opset: int
    inputs: int
    outputs: int

    @staticmethod
    def of(op: str) -> Typical:
        """Return the node of an operator with all inputs and one output."""
        return Typical(op, OPSET, onnx.defs.get_schema(op, OPSET).max_input, 1)

    def rank(self, slot: int) -> int:
        """Return three axes for the data, one for other operands."""
        return 1 if slot else 3

    def dim(self, slot: int, axis: int) -> int | None:
        """Return None: sizes are unknown."""
        return None

    def attribute(self, name: str, default: object = None) -> object:
        """Return the default."""
        return default

    def value(self, slot: int) -> np.ndarray | None:
        """Return the last axis as the value of `axes`."""
        return np.array(-1 if self.op == "CumSum" else [-1])


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def rules() -> str:
    """Return a table of operators by their effect on channels."""
    from onnxprune.analysis.movement import MOVES
    from onnxprune.analysis.rules import RULES, Rule
    from onnxprune.ir.passes.expand_fused import EXPANDED

    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for op, entry in RULES.items():
        rule = entry if isinstance(entry, Rule) or entry.__doc__ else entry(Typical.of(op))
        if isinstance(rule, Rule):
            example = "" if rule is entry else "with common attributes "
            pattern = re.sub(r" +(?=[, ])", "", rule.pattern)
            mixes = " ".join(f"`{letter}`" for letter in rule.mixes.replace(" ", ""))
            groups[f"{example}`{pattern}`", mixes].append(op)
        else:
            groups[str(entry.__doc__).strip().splitlines()[0].rstrip("."), ""].append(op)
    groups["moves positions: the op itself, applied to channels", ""] = list(MOVES)
    groups["expanded into standard operators", ""] = sorted(EXPANDED.keys() - RULES.keys())
    rows = [(", ".join(sorted(ops)), what, mixes) for (what, mixes), ops in groups.items()]
    count = len(RULES.keys() | MOVES.keys() | EXPANDED.keys())
    note = (
        f"{count} operators. Letters are axes, equal letters are one axis, a letter missing on\n"
        "the right is summed over, parentheses are a product, `*` the spatial axes, `...` leading\n"
        "axes. An axis that an operator mixes is not pruned unless `--allow-mixing` names it."
    )
    return f"{note}\n\n{table(('operator', 'what it does with channels', 'mixes'), rows)}"


def operators() -> str:
    """Return a table of operators: analysis, gradient, tuning."""
    from onnxprune.analysis.movement import MOVES
    from onnxprune.analysis.rules import RULES
    from onnxprune.autodiff.rules import TABLE, ZERO
    from onnxprune.ir.passes.expand_fused import EXPANDED

    tuning = tuning_operators()
    rows = []
    for op in sorted({*RULES, *MOVES, *EXPANDED, *TABLE, *ZERO, *tuning}):
        if op in EXPANDED and op not in RULES:
            rows.append((op, "expanded", "expanded", "expanded"))
            continue
        analysis = "pattern" if op in RULES else ""
        if op in MOVES:
            analysis = "pattern, moves positions" if analysis else "moves positions"
        gradient = "yes" if op in TABLE else "zero" if op in ZERO else ""
        rows.append((op, analysis, gradient, "yes" if op in tuning else ""))
    counts = (
        len(RULES.keys() | MOVES.keys() | EXPANDED.keys()),
        len(TABLE),
        len(ZERO),
        len(tuning),
    )
    note = (
        "{} operators have an analysis, {} a gradient, {} a gradient of zero, and {} an "
        "implementation in tuning.".format(*counts)
    )
    return f"{note}\n\n{table(('operator', 'analysis', 'gradient', 'tuning'), rows)}"


def without_rule() -> str:
    """Return a table of the standard's operators without a rule, by reason."""
    from onnxprune.analysis.no_rule import REASONS

    reasons: dict[str, list[str]] = defaultdict(list)
    for op, reason in REASONS.items():
        reasons[reason].append(op)
    rows = [(", ".join(sorted(ops)), reason) for reason, ops in reasons.items()]
    return table(("operators", "reason that axes are frozen for"), rows)


def tuning_operators() -> set[str]:
    """Return the operators in the tables of tuning, read from their source without torch."""
    names: set[str] = set()
    for path in sorted((PACKAGE / "tune").glob("ops*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.AnnAssign):
                continue
            if ast.unparse(node.annotation) != "dict[str, Row]":
                continue
            if isinstance(node.value, ast.Dict):
                keys: Sequence[ast.expr | None] = node.value.keys
            elif isinstance(node.value, ast.DictComp):  # one row for several names
                keys = [n for g in node.value.generators for n in ast.walk(g.iter)]
            else:
                continue
            names |= {str(k.value) for k in keys if isinstance(k, ast.Constant)}
    return names


def options() -> str:
    """Return a table of the options of a run."""
    from onnxprune.run.recipe import OPTIONS, Recipe

    plain = Recipe().plain()
    rows = []
    for name, option in OPTIONS.items():
        default = plain.get(name, "")
        if isinstance(default, list):
            shown = ", ".join(map(str, default))
        else:
            shown = "" if default == {} else str(default)
        flag = f"--{name.replace('_', '-')} {option.metavar}".rstrip()
        default_cell = f"`{shown}`" if shown else ""
        rows.append((f"`{name}`", f"`{flag}`", default_cell, option.help))
    return table(("key", "flag", "default", "description"), rows)


def registries() -> str:
    """Return the names that options accept and plug-ins extend."""
    from onnxprune.allocators import ALLOCATORS
    from onnxprune.criteria import CRITERIA
    from onnxprune.data import DATA_SOURCES
    from onnxprune.data.label_formats import FORMATS
    from onnxprune.engines import ENGINES
    from onnxprune.metrics import METRICS
    from onnxprune.metrics.heads import HEADS
    from onnxprune.repair import REPAIRS
    from onnxprune.search import METHODS

    known = (METHODS, CRITERIA, ALLOCATORS, REPAIRS, ENGINES, METRICS, DATA_SOURCES, FORMATS)
    parts = []
    for registry in known:
        rows = [(f"`{name}`", text) for name, (_, text) in registry.builtin.items()]
        group = f"Entry-point group of plug-ins: `{registry.group}`."
        names = table(("name", "description"), rows)
        parts.append(f"### {registry.kind}\n\n{group}\n\n{names}")
    heads = [(f"`{h.name}`", h.layout, ", ".join(h.also)) for h in HEADS]
    names = table(("name", "outputs: n images, k cells or queries, c classes", "also"), heads)
    parts.append(f"### decoder\n\nA plug-in is named as `module:function`.\n\n{names}")
    return "\n\n".join(parts)


def handoffs() -> str:
    """Return the targets of `onnxprune handoff` with requirements and options."""
    from onnxprune.deploy import TARGETS

    parts = []
    for name, (_, text) in TARGETS.builtin.items():
        target = TARGETS.get(name)
        rows = [
            (f"`{key}`", f"`{option.default}`" if option.default else "", option.text)
            for key, option in target.options.items()
        ]
        needs = "\n".join(f"- {need}" for need in target.needs)
        head = f"### {name}\n\n{text}.\n\nNeeded on the machine that runs the bundle:"
        settings = table(("option", "default", "description"), rows)
        parts.append(f"{head}\n\n{needs}\n\n{settings}")
    return "\n\n".join(parts)


def commands() -> str:
    """Return the output of `--help-all` of every command."""
    import click

    from onnxprune.cli.app import COMMANDS, app
    from onnxprune.cli.command import full_help

    parts = []
    for name in COMMANDS:
        command = app.get_command(click.Context(app), name)
        assert command is not None
        text = full_help(command, f"onnxprune {name}", HELP_WIDTH)
        parts.append(f"## {name}\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def errors() -> str:
    """Return a table of error codes, exit status and messages."""
    by_code: dict[str, set[Failure]] = defaultdict(set)
    for failure in failures():
        by_code[failure.code].add(failure)
    rows = []
    for code, of_code in sorted(by_code.items()):
        status = ", ".join(sorted({str(f.exit_code) for f in of_code}))
        messages = sorted(f.message.replace("<", "&lt;") for f in of_code)
        rows.append((f'<a id="{code}"></a>`{code}`', status, "<br>".join(messages)))
    return table(("code", "exit", "message"), rows)


def robustness() -> str:
    """Return the tables of docs/robustness.json, written by tests/robustness/measure.py."""
    sys.path.insert(0, str(ROOT))
    from tests.robustness.measure import tables

    path = ROOT / "docs" / "robustness.json"
    return tables(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ""


def proved() -> str:
    """Return the table of docs/proved.json, written by tools/prove."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
    from proving.record import tables
    from proving.table import NO_WORLDS

    path = ROOT / "docs" / "proved.json"
    return tables(json.loads(path.read_text(encoding="utf-8")), NO_WORLDS)


def measured(benchmark: str) -> str:
    """Return the table of the JSON file in docs/ that a benchmark has written."""
    sys.path.insert(0, str(ROOT))
    path = ROOT / "docs" / f"{benchmark}.json"
    report = importlib.import_module(f"benchmarks.{benchmark}").report
    return report(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ""


def failures() -> Iterator[Failure]:
    """Yield every error that the package raises, read from its source."""
    exit_codes = _exit_codes()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                failure = _failure(node, exit_codes)
                if failure:
                    yield failure


def _failure(node: ast.Call, exit_codes: Mapping[str, int]) -> Failure | None:
    """Return the error that a call creates, None for other calls."""
    name = getattr(node.func, "id", getattr(node.func, "attr", ""))
    first, count = _template(node.args[0]), len(node.args)
    is_constant = isinstance(node.args[0], ast.Constant)
    if name == "_say" and count == 3 and is_constant:
        from onnxprune.cli import INTERRUPTED

        status = node.args[2].value if isinstance(node.args[2], ast.Constant) else INTERRUPTED
        return Failure(first, int(str(status)), _short(_template(node.args[1])))
    if name == "Registry" or (name == "unknown" and not first.endswith(".kind}")):
        kind = "..." if "{" in first else first  # computed: any of the others
        code = next((_template(k.value) for k in node.keywords if k.arg == "code"), "")
        code = code or "unknown-" + kind.replace(" ", "-")
        return Failure(code, USAGE, f"unknown {kind} {{name}}; did you mean ...?")
    if name == "MissingExtraError" and count == 3:
        package, extra, purpose = map(_template, node.args)
        hint = f'pip install "onnxprune[{extra}]"'
        return Failure("missing-extra", ENVIRONMENT, f"{purpose} needs {package}: {hint}")
    if name in exit_codes and count == 2 and is_constant:
        return Failure(first, exit_codes[name], _short(_template(node.args[1])))
    return None


def _exit_codes() -> Mapping[str, int]:
    """Return the exit status by name of every error class of the package."""
    from onnxprune import errors as base

    codes = {
        name: kind.exit_code
        for name, kind in vars(base).items()
        if isinstance(kind, type) and issubclass(kind, base.OnnxpruneError)
    }
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef) or node.name in codes:
                continue
            bases = [b.id for b in node.bases if isinstance(b, ast.Name) and b.id in codes]
            if bases:
                codes[node.name] = codes[bases[0]]
    return codes


def _template(node: ast.expr) -> str:
    """Return a message as written in the source, values as {names}."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = []
        for value in node.values:
            if isinstance(value, ast.FormattedValue):
                parts.append("{" + _name(value.value) + "}")
            else:
                parts.append(_template(value))
        return "".join(parts)
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return "{" + _name(node) + "}"


def _name(node: ast.expr) -> str:
    """Return a short name for an expression."""
    text = ast.unparse(node)
    return text if re.fullmatch(r"[\w.]+", text) else "..."


def _short(message: str) -> str:
    """Return the first line, truncated to _MOST_MESSAGE."""
    first = message.splitlines()[0] if message else ""
    return first if len(first) <= _MOST_MESSAGE else first[:_MOST_MESSAGE] + "..."


SECTIONS: Mapping[str, Callable[[], str]] = {
    "rules": rules,
    "operators": operators,
    "without_rule": without_rule,
    "options": options,
    "registries": registries,
    "handoffs": handoffs,
    "commands": commands,
    "errors": errors,
    "robustness": robustness,
    "proved": proved,
    **{
        name: functools.partial(measured, name)
        for name in ("packages", "random_networks", "verifier_power")
    },
}


def update(text: str) -> str:
    """Return the document with its generated sections updated."""
    return _SECTION.sub(lambda m: f"{m[1]}{SECTIONS[m[2]]()}\n{m[3]}", text)


def main() -> None:
    """Update the documents, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = path.read_text(encoding="utf-8")
        new = update(text)
        if new != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(("not up to date: " if check else "written: ") + ", ".join(stale))
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
