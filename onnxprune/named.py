"""Text that stands for an object of the caller, such as an array or a function, in a recipe."""

from __future__ import annotations

from typing import Any


class Named(str):
    """Name of an object that was passed in place of a path or of `module:function`.

    It is the option's value everywhere that a text is expected, and carries the object to where
    data are opened and functions are called.

    Attributes
    ----------
    value
        The object.
    """

    value: Any

    def __new__(cls, name: str, value: Any) -> Named:
        """Return the name with its object."""
        self = super().__new__(cls, name)
        self.value = value
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle name and object, for searches that run in other processes."""
        return Named, (str(self), self.value)


def describe(value: Any) -> str:
    """Return what an object is in a few words; arrays are named by type and shape, not printed.

    >>> describe({"x": [1, 2]})
    "dict of 'x'"
    """
    kind = type(value).__name__
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype} array ({'x'.join(map(str, shape))})"
    if isinstance(value, dict):
        names = list(map(repr, value))
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return f"{kind} of {', '.join(names[:4])}{more}"
    if callable(value) and hasattr(value, "__name__"):
        return f"{getattr(value, '__module__', '') or '__main__'}:{value.__name__}"
    if isinstance(value, (list, tuple)):
        return f"{kind} of {len(value)}"
    return kind


def shown(value: Any) -> str:
    """Return a value for an error message: short ones as Python writes them, others described.

    >>> shown(0.5), shown([0] * 1000)
    ('0.5', 'list of 1000')
    """
    if isinstance(value, (str, int, float, bool, type(None))):
        return repr(value)
    # the text of an object can be megabytes, so it is not even made for those with arrays
    if hasattr(value, "shape") or isinstance(value, dict):
        return describe(value)
    if isinstance(value, (list, tuple)) and not _is_short(value):
        return describe(value)
    text = repr(value)
    return text if len(text) <= 80 else describe(value)


def _is_short(values: Any) -> bool:
    """Return whether a list has few entries, all of them plain."""
    return len(values) <= 8 and all(
        isinstance(entry, (str, int, float, bool, type(None), list, tuple)) for entry in values
    )
