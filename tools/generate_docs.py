"""Write the parts of the documents that follow from the code.

usage: python tools/generate_docs.py [--check]          --check changes nothing and fails where a document is not up to date

In README.md and docs/*.md, what stands between `<!-- generated: NAME -->` and `<!-- end of generated -->` is replaced by what the function of that name
in SECTIONS returns.
"""

from __future__ import annotations

import argparse
import ast
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
_MOST_MESSAGE = 240  # characters of a message that the list of errors shows


class Failure(NamedTuple):
    """One place that raises: the code, the exit status, the message with its values as {names}."""

    code: str
    exit_code: int
    message: str


@dataclass
class Typical(Attributes):
    """A node as it is met most often, for operators whose pattern depends on attributes: three axes, working on the last one."""

    op: str
    opset: int
    inputs: int
    outputs: int

    @staticmethod
    def of(op: str) -> Typical:
        """With all inputs and one output."""
        return Typical(op, OPSET, onnx.defs.get_schema(op, OPSET).max_input, 1)

    def rank(self, slot: int) -> int:
        """Three axes in the data, one in what goes with them."""
        return 1 if slot else 3

    def dim(self, slot: int, axis: int) -> int | None:
        """Unknown sizes."""
        return None

    def attribute(self, name: str, default: object = None) -> object:
        """The default."""
        return default

    def value(self, slot: int) -> np.ndarray | None:
        """The last axis."""
        return np.array(-1 if self.op == "CumSum" else [-1])


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines
    )


def rules() -> str:
    """Operators by what they do with channels."""
    from onnxprune.analysis.movement import MOVES
    from onnxprune.analysis.rules import RULES, Rule

    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for op, entry in RULES.items():
        rule = entry if isinstance(entry, Rule) or entry.__doc__ else entry(Typical.of(op))
        if isinstance(rule, Rule):
            example = "" if rule is entry else "with common attributes "
            found[
                f"{example}`{re.sub(r' +(?=[, ])', '', rule.pattern)}`",
                " ".join(f"`{letter}`" for letter in rule.mixes.replace(" ", "")),
            ].append(op)
        else:
            found[str(entry.__doc__).strip().splitlines()[0].rstrip("."), ""].append(op)
    found["moves positions: the op itself, applied to channels", ""] = list(MOVES)
    rows = [(", ".join(sorted(ops)), what, mixed) for (what, mixed), ops in found.items()]
    count = len(RULES.keys() | MOVES.keys())
    note = (
        f"{count} operators. Letters are axes, equal letters are one axis, a letter missing on the right is summed over, parentheses are a product, `*` the spatial axes, "
        "`...` leading axes.\nAn axis that an operator mixes is not pruned unless `--allow-mixing` names the operator."
    )
    return f"{note}\n\n{table(('operator', 'what it does with channels', 'mixes'), rows)}"


def operators() -> str:
    """Operators by what analysis, gradients and tuning know of them."""
    from onnxprune.analysis.movement import MOVES
    from onnxprune.analysis.rules import RULES
    from onnxprune.autodiff.rules import TABLE, ZERO

    tuning = tuning_operators()
    rows = []
    for op in sorted({*RULES, *MOVES, *TABLE, *ZERO, *tuning}):
        analysis = "pattern" if op in RULES else ""
        if op in MOVES:
            analysis = "pattern, moves positions" if analysis else "moves positions"
        gradient = "yes" if op in TABLE else "zero" if op in ZERO else ""
        rows.append((op, analysis, gradient, "yes" if op in tuning else ""))
    counts = (len(RULES.keys() | MOVES.keys()), len(TABLE), len(ZERO), len(tuning))
    note = (
        "{} operators have an analysis, {} a gradient, {} a gradient of zero, and {} an "
        "implementation in tuning.".format(*counts)
    )
    return f"{note}\n\n{table(('operator', 'analysis', 'gradient', 'tuning'), rows)}"


def tuning_operators() -> set[str]:
    """Names of the tables of tuning, read from their source, since importing it needs torch."""
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
    """Every option of a run: flag, recipe key and keyword in one."""
    from onnxprune.run.recipe import OPTIONS, Recipe

    plain = Recipe().plain()
    rows = []
    for name, option in OPTIONS.items():
        default = plain.get(name, "")
        shown = (
            ", ".join(map(str, default))
            if isinstance(default, list)
            else ""
            if default in ({}, "")
            else str(default)
        )
        rows.append(
            (
                f"`{name}`",
                f"`--{name.replace('_', '-')} {option.metavar}`".replace(" `", "`"),
                f"`{shown}`" if shown else "",
                option.help,
            )
        )
    return table(("key", "flag", "default", "description"), rows)


def registries() -> str:
    """What can be named in an option, and extended by a plug-in."""
    from onnxprune.allocators import ALLOCATORS
    from onnxprune.criteria import CRITERIA
    from onnxprune.data import DATA_SOURCES
    from onnxprune.engines import ENGINES
    from onnxprune.metrics import METRICS
    from onnxprune.repair import REPAIRS
    from onnxprune.search import METHODS

    known = (METHODS, CRITERIA, ALLOCATORS, REPAIRS, ENGINES, METRICS, DATA_SOURCES)
    parts = []
    for registry in known:
        rows = [(f"`{name}`", text) for name, (_, text) in registry.builtin.items()]
        parts.append(
            f"### {registry.kind}\n\nEntry-point group of plug-ins: `{registry.group}`.\n\n{table(('name', 'description'), rows)}"
        )
    return "\n\n".join(parts)


def handoffs() -> str:
    """Targets of `onnxprune handoff`, what their machines need, and the options of each."""
    from onnxprune.deploy import TARGETS

    parts = []
    for name, (_, text) in TARGETS.builtin.items():
        target = TARGETS.get(name)
        rows = [
            (f"`{key}`", f"`{option.default}`" if option.default else "", option.text)
            for key, option in target.options.items()
        ]
        needs = "\n".join(f"- {need}" for need in target.needs)
        parts.append(
            f"### {name}\n\n{text}.\n\nNeeded on the machine that runs the bundle:\n\n{needs}\n\n{table(('option', 'default', 'description'), rows)}"
        )
    return "\n\n".join(parts)


def commands() -> str:
    """Return the output of `--help` of every command."""
    import click

    from onnxprune.cli.app import COMMANDS, app

    parts = []
    for name in COMMANDS:
        command = app.get_command(click.Context(app), name)
        assert command is not None
        text = command.get_help(
            click.Context(
                command,
                info_name=f"onnxprune {name}",
                terminal_width=HELP_WIDTH,
                max_content_width=HELP_WIDTH,
            )
        )
        parts.append(f"## {name}\n\n```text\n{text}\n```")
    return "\n\n".join(parts)


def errors() -> str:
    """Every error code, with its exit status and the messages that the source gives it."""
    by_code: dict[str, set[Failure]] = defaultdict(set)
    for failure in failures():
        by_code[failure.code].add(failure)
    rows = []
    for code, found in sorted(by_code.items()):
        status = ", ".join(sorted({str(f.exit_code) for f in found}))
        rows.append(
            (
                f'<a id="{code}"></a>`{code}`',
                status,
                "<br>".join(sorted(f.message.replace("<", "&lt;") for f in found)),
            )
        )
    return table(("code", "exit", "message"), rows)


def robustness() -> str:
    """The tables of docs/robustness.json, which `python -m tests.robustness.measure --json` writes."""
    sys.path.insert(0, str(ROOT))
    from tests.robustness.measure import tables

    path = ROOT / "docs" / "robustness.json"
    return tables(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else ""


def failures() -> Iterator[Failure]:
    """Every OnnxpruneError that the package makes, read from its source."""
    exit_codes = _exit_codes()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = (
                getattr(node.func, "id", getattr(node.func, "attr", ""))
                if isinstance(node, ast.Call)
                else ""
            )
            if not isinstance(node, ast.Call) or not node.args:
                continue
            kind = _template(node.args[0])
            if name == "_say" and len(node.args) == 3 and isinstance(node.args[0], ast.Constant):
                from onnxprune.cli import INTERRUPTED

                status = (
                    node.args[2].value if isinstance(node.args[2], ast.Constant) else INTERRUPTED
                )
                yield Failure(kind, int(str(status)), _short(_template(node.args[1])))
            elif name == "Registry" or (name == "unknown" and not kind.endswith(".kind}")):
                kind = "..." if "{" in kind else kind  # computed: any of the others
                code = next((_template(k.value) for k in node.keywords if k.arg == "code"), "")
                yield Failure(
                    code or "unknown-" + kind.replace(" ", "-"),
                    2,
                    f"unknown {kind} {{name}}; did you mean ...?",
                )
            elif name == "MissingExtraError" and len(node.args) == 3:
                package, extra, purpose = map(_template, node.args)
                yield Failure(
                    "missing-extra",
                    1,
                    f'{purpose} needs {package}: pip install "onnxprune[{extra}]"',
                )
            elif (
                name in exit_codes
                and len(node.args) == 2
                and isinstance(node.args[0], ast.Constant)
            ):
                yield Failure(
                    str(node.args[0].value), exit_codes[name], _short(_template(node.args[1]))
                )


def _exit_codes() -> Mapping[str, int]:
    """Names of all error classes -> exit status, subclasses in other modules included."""
    from onnxprune import errors as base

    found = {
        name: kind.exit_code
        for name, kind in vars(base).items()
        if isinstance(kind, type) and issubclass(kind, base.OnnxpruneError)
    }
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name not in found:
                parents = [
                    found[b.id] for b in node.bases if isinstance(b, ast.Name) and b.id in found
                ]
                if parents:
                    found[node.name] = parents[0]
    return found


def _template(node: ast.expr) -> str:
    """A message as its source spells it, values as {what they are}."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(v.value) if isinstance(v, ast.Constant) else "{" + _name(v.value) + "}"
            for v in node.values
        )  # type: ignore[attr-defined]
    if isinstance(node, ast.BinOp):
        return _template(node.left) + _template(node.right)
    return "{" + _name(node) + "}"


def _name(node: ast.expr) -> str:
    """A short word for an expression."""
    text = ast.unparse(node)
    return text if re.fullmatch(r"[\w.]+", text) else "..."


def _short(message: str) -> str:
    """The first line, not too long."""
    first = message.splitlines()[0] if message else ""
    return first if len(first) <= _MOST_MESSAGE else first[:_MOST_MESSAGE] + "..."


SECTIONS: Mapping[str, Callable[[], str]] = {
    "rules": rules,
    "operators": operators,
    "options": options,
    "registries": registries,
    "handoffs": handoffs,
    "commands": commands,
    "errors": errors,
    "robustness": robustness,
}


def filled(text: str) -> str:
    """The document with its generated sections up to date; KeyError for a name that is not in SECTIONS."""
    return _SECTION.sub(lambda m: f"{m[1]}{SECTIONS[m[2]]()}\n{m[3]}", text)


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(new, encoding="utf-8")
    if stale:
        print(("not up to date: " if check else "written: ") + ", ".join(stale))
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
