"""Equations between dynamic lengths: what a graph that runs says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from onnxprune.ir.example_sizes import is_anonymous
from onnxprune.ir.values import Dim, product, quotient, symbols_of

_QUOTIENT = re.compile(r"\?\(([^*+/]+)/(\d+)\)")  # symbol of a truncated quotient, see `values`


def solve(a: Sequence[Dim], b: Sequence[Dim]) -> dict[str, Dim]:
    """Return what follows for symbols if two lists of lengths have equal products.

    A symbol follows if it is on one side only and the quotient of the rest is exact: of 16 f = 160,
    f = 10. Nothing follows from products that are equal whatever the symbols.
    """
    if None in a or None in b:
        return {}
    totals = product(a), product(b)
    if totals[0] == totals[1] or 0 in totals:
        return {}
    for own, other in (totals[::-1], totals):
        # symbols without a name first: they are the results of arithmetic
        for symbol in sorted(set(symbols_of(own)), key=lambda d: (not is_anonymous(d), d)):
            value = quotient(other, quotient(own, symbol))
            if value is not None and symbol not in symbols_of(value):
                return {symbol: value}
    # a truncated quotient times its divisor is at most the dividend: with equal products, equal
    multiples = exact_quotients((*a, *b))
    equal = product(substitute(a, multiples)) == product(substitute(b, multiples))
    return multiples if equal else {}


def exact_quotients(lengths: Sequence[Dim]) -> dict[str, Dim]:
    """Return what the dividends of truncated quotients equal if nothing was truncated."""
    multiples: dict[str, Dim] = {}
    for symbol in {s for d in lengths if d is not None for s in symbols_of(d)}:
        match = _QUOTIENT.fullmatch(symbol)
        if match is not None:
            multiples[match[1]] = product([int(match[2]), symbol])
    return multiples


def substitute(lengths: Sequence[Dim], values: Mapping[str, Dim]) -> list[Dim]:
    """Return lengths with symbols replaced by what they equal."""
    if not values:
        return list(lengths)
    return [_replace_symbols(length, values) for length in lengths]


def _replace_symbols(length: Dim, values: Mapping[str, Dim]) -> Dim:
    """Return a length with its symbols replaced."""
    symbols = [] if length is None else symbols_of(length)
    if not any(symbol in values for symbol in symbols):
        return length
    number = quotient(length, product(symbols))
    return product([number, *(values.get(symbol, symbol) for symbol in symbols)])
