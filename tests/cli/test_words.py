"""Messages, help and documents use standard terms; words to avoid are listed here."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

import onnxprune
from onnxprune.cli.app import COMMANDS, app
from onnxprune.registry import Registry
from onnxprune.run.recipe import OPTIONS

PACKAGE = Path(onnxprune.__file__).parent
# word, as a regular expression -> what to write instead
RETIRED = {
    r"tells?|told|telling": "report, show, or name the condition",
    r"verbs?": "command",
    r"(the )?whole (model|network|one)": "original, dense or unpruned model",
    r"(go(es)?|stays?|left|leaves?|remains?) whole": "is removed, stays unpruned, is intact",
    r"readers?": "consumer",
    r"beside (it|them)|lies? beside": "next to it",
    r"nobody|somebody": "name the condition",
    r"slip of the pen": "typo",
    r"lies?|lying|lay": "is, has, is stored",
    r"(held|kept) apart": "held out",
    r"chose nothing": "held-out",
    r"some hundred|some thousand": "a few hundred",
    r"goes? on from": "resume from",
    r"out of reach": "not reachable",
    r"quieter machine": "idle machine",
    r"what it is worth|worth nothing": "name the measure",
    r"made up for": "compensated",
    r"slopes?": "gradient",
    r"triangles?": "cholesky",
    # British spellings
    r"\w*(analys|generalis|initialis|maximis|minimis|normalis|optimis|organis)(e[ds]?|ing)": "z",
    r"\w*(parametris|penalis|quantis|realis|recognis|regularis|serialis)(e[ds]?|ing)": "z",
    r"\w*(standardis|summaris|utilis|vectoris|visualis)(e[ds]?|ing)": "z",
    r"\w+isations?": "-ization",
    r"\w*(labell|modell|cancell|travell|signall)(ed|ing|er)": "one l",
    r"\w*(colour|neighbour|behaviour|favour)\w*": "-or",
    r"(centre|metre|fibre)[ds]?|artefacts?|licence|grey|programme[ds]?": "the American spelling",
}
ALLOWED = {"premise", "otherwise", "precise"}
# besides errors: functions that print, and methods of stages
MESSAGE_CALLS = {"_say", "detail", "echo", "pass_progress", "progress", "say", "unknown"}


@cache
def messages() -> tuple[tuple[str, str], ...]:
    """Return ("path:line", text) of every string literal in a call that makes a message."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = called_name(node)
            if not (name.endswith("Error") or name in MESSAGE_CALLS):
                continue
            assert isinstance(node, ast.Call)
            for text in literals(node):
                found.append((f"{path.relative_to(PACKAGE.parent)}:{node.lineno}", text))
    return tuple(found)


def called_name(node: ast.AST) -> str:
    """Return the name of the function that a call calls, "" for other nodes."""
    if not isinstance(node, ast.Call):
        return ""
    return str(getattr(node.func, "id", getattr(node.func, "attr", "")))


def literals(call: ast.Call) -> Iterator[str]:
    """Yield the texts in the arguments of a call; of an f-string, the parts between its values.

    Codes of errors are public and stay.
    """
    keywords = [keyword.value for keyword in call.keywords if keyword.arg != "code"]
    for argument in [*call.args, *keywords]:
        for node in ast.walk(argument):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def registry_texts() -> Iterator[tuple[str, str]]:
    """Yield (name, text) of the descriptions of all built-ins."""
    for path in sorted(PACKAGE.rglob("__init__.py")):
        package = ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        for name, value in vars(importlib.import_module(package)).items():
            if isinstance(value, Registry):
                for entry, (_, text) in value.builtin.items():
                    yield f"{package}.{name}: {entry}", text


def help_texts() -> Iterator[tuple[str, str]]:
    """Yield (command, text) of the help of every command and of its line in the list."""
    for name, (_, line) in COMMANDS.items():
        command = app.get_command(click.Context(app), name)
        assert command is not None
        yield name, line
        # paths and wrapping do not matter: the help is one line here
        context = click.Context(command, info_name=name, terminal_width=10_000)
        context.max_content_width = 10_000
        yield name, command.get_help(context)


def document_texts() -> Iterator[tuple[str, str]]:
    """Yield ("path:line", line) of the prose of every document.

    Code, and sections that are generated from other texts, are left out.
    """
    root = PACKAGE.parent
    for path in [*root.glob("*.md"), *(root / "docs").rglob("*.md")]:
        is_code = is_generated = False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("```"):
                is_code = not is_code
            elif line.startswith(("<!-- generated:", "<!-- end of generated")):
                is_generated = line.startswith("<!-- generated:")
            elif not (is_code or is_generated):
                yield f"{path.relative_to(root)}:{number}", line


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """Return (where, text) of what users read: messages, help, the report page, documents."""
    options = [(f"option {name}", option.help) for name, option in OPTIONS.items()]
    templates = sorted((PACKAGE / "report" / "templates").glob("*.html"))
    page = "\n".join(path.read_text(encoding="utf-8") for path in templates)
    # tags and template code hold names, not text
    page = re.sub(r"<[^>]*>|\{[{%].*?[%}]\}", " ", page)
    sources = (help_texts(), registry_texts(), messages(), document_texts())
    return (*options, ("report page", page), *(text for source in sources for text in source))


@pytest.mark.parametrize("word", RETIRED)
def test_retired_words_are_not_used(word: str) -> None:
    pattern = re.compile(rf"\b(?:{word})\b", re.IGNORECASE)
    found = [
        f"{where}: {match[0]!r} in {text!r}"
        for where, text in texts()
        if (match := pattern.search(text)) and match[0].lower() not in ALLOWED
    ]
    assert found == [], f"write instead: {RETIRED[word]}"


def test_messages_are_found() -> None:
    found = [text for _, text in messages()]
    assert len(found) > 500
    assert any("does not exist" in text for text in found)
