"""Errors that onnxprune raises, each with a one-sentence message.

Each carries a stable `code`, which the troubleshooting page lists, and the exit code of the command
line: 1 error, 2 usage or recipe, 3 target not reachable, 4 verification failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difflib import SequenceMatcher

MOST_KNOWN = 40  # names in a message
MOST_NEAR = 3  # also the most of a model's names
# without the module json, which would delay --help
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"}


class OnnxpruneError(Exception):
    """Base of all errors that onnxprune raises on purpose.

    Parameters
    ----------
    code
        Stable slug such as "model-truncated".
    message
        What failed, the value, the limit and the fix. The first of several lines stands alone.
    """

    exit_code = 1

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class ModelError(OnnxpruneError):
    """The model file cannot be read, is invalid, or is not supported."""


class DataError(OnnxpruneError):
    """Calibration or evaluation data do not fit the model, or cannot be read."""


class OutputError(OnnxpruneError):
    """A file cannot be written."""


class EngineError(OnnxpruneError):
    """An inference engine is missing, rejects the model, or fails while it runs."""


class MissingExtraError(OnnxpruneError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            "missing-extra", f'{purpose} needs {package}: pip install "onnxprune[{extra}]"'
        )


class UsageError(OnnxpruneError):
    """An option, recipe or plan is not valid."""

    exit_code = 2


class TargetError(OnnxpruneError):
    """The target cannot be reached."""

    exit_code = 3


class VerificationError(OnnxpruneError):
    """The pruned model does not equal the masked original."""

    exit_code = 4


def unknown(
    kind: str, name: str, known: Iterable[str], code: str = "", *, most: int = MOST_KNOWN
) -> UsageError:
    """Return the error for a name that does not exist, with the closest one that does.

    Parameters
    ----------
    kind
        What the name stands for: "criterion".
    code
        Code of the error; by default "unknown-" and the kind.
    most
        Most names that are all listed if none is close; of more, the nearest are.
    """
    import difflib  # only wrong names need it, help does not

    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1) or _find_containing(name, names)
    if near:
        hint = "did you mean " + " or ".join(map(repr, near)) + "?"
    elif len(names) <= most:
        hint = "known: " + (", ".join(names) or "none")
    else:
        # a model has thousands of tensors, which no message can list
        matcher = difflib.SequenceMatcher(b=name)
        hint = "nearest names: " + ", ".join(map(repr, _find_nearest(matcher, names)))
    code = code or f"unknown-{kind.replace(' ', '-')}"
    return UsageError(code, f"unknown {kind} {name!r}; {hint}")


def _find_nearest(matcher: SequenceMatcher[str], names: Sequence[str]) -> list[str]:
    """Return the names that share most characters with the second text of a matcher."""

    def share(name: str) -> float:
        matcher.set_seq1(name)
        return matcher.quick_ratio()  # the exact ratio takes seconds on a large model

    # the shorter of two equal shares first, which `sorted` keeps in order
    return sorted(names, key=lambda name: (-share(name), len(name)))[:MOST_NEAR]


def _find_containing(name: str, names: Iterable[str]) -> list[str]:
    """Return the shortest names of which the given one is a part, such as one without its path."""
    part = name.lower()
    containing = [n for n in names if len(part) > 2 and part in n.lower()]
    return sorted(containing, key=len)[:MOST_NEAR]


def printable(text: str) -> str:
    r"""Return a text in which whatever is not printable is escaped as in JSON.

    Control characters, marks of direction, ends of lines and bytes that are no UTF-8 in names from
    files would otherwise act on a terminal.

    >>> print(printable("conv\x1b[2K"))
    conv\u001b[2K
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _SHORT.get(c) or _escape(c) for c in text)


def _escape(character: str) -> str:
    """Return the units of a character in UTF-16 as JSON writes them."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def plural(count: int, noun: str, many: str = "") -> str:
    """Return "1 input" or "2 inputs"; `many` is an irregular plural."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"
