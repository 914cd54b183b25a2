"""Applying a row of the rule table to a node: bind letters, unify axes, name the output axes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxprune.analysis.causes import Axis
from onnxprune.analysis.notation import LEADING, ONE, SPATIAL, Token, letters, parse
from onnxprune.analysis.rules import Rule
from onnxprune.analysis.state import Average, Mask, Node, Product, Refit, Tensor
from onnxprune.ir.values import Dim

Key = str | tuple[str, int]  # a letter, or the k-th of the axes that a mark stands for


class Misfit(Exception):
    """The pattern does not fit the operands; the node is frozen with this text."""


@dataclass
class _Match:
    """One application."""

    node: Node
    rule: Rule
    allowed: bool
    env: dict[Key, Axis] = field(default_factory=dict)
    length: dict[Key, Dim] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pattern = parse(self.rule.pattern)
        self.causes = self.node.record.causes
        self.frozen = set(self.rule.freeze)
        self.tokens: list[list[Key | tuple[str, ...]] | None] = []
        for slot, operand in enumerate(self.node.operands):
            if operand is None or slot >= len(self.pattern.inputs):
                self.tokens.append(None)
                continue
            self.tokens.append(_expand(self.pattern.inputs[slot], self.node.shape(slot), slot))
        self.made = {x for axes in self.pattern.outputs for x in letters(axes)}
        self.from_data = {
            name
            for operand, tokens in zip(self.node.operands, self.tokens, strict=False)
            if operand is not None and tokens is not None and not operand.constant
            for token in tokens
            for name in (token if isinstance(token, tuple) else (token,))
        }
        for name, source in self.rule.let.items():
            value = self.node.attribute(source, 1) if isinstance(source, str) else source
            self.length[name] = int(value)  # type: ignore[call-overload]

    def measured(self) -> list[tuple[int, list[Key | tuple[str, ...]]]]:
        """Bind all lengths; the operands that are there, with their tokens."""
        present = [(s, t) for s, t in enumerate(self.tokens) if t is not None]
        for slot, tokens in (
            present * 2
        ):  # again, now that a length of 1 may have become that of another operand
            self.measure(slot, tokens)
        return present

    def run(self) -> list[list[Axis]]:
        """Bind all operands; the axes of each output."""
        present = self.measured()
        for constant in (False, True):
            for slot, tokens in present:
                operand = self.node.operands[slot]
                if operand is not None and operand.constant == constant:
                    self.bind(slot, operand, tokens)
        self.freeze()
        if self.rule.masked is not None:
            self.mask_recurrent(self.rule.masked)
        outputs = [
            self.output(i, tokens)
            for i, tokens in enumerate(self.pattern.outputs[: len(self.node.proto.output)])
        ]
        self.finish(present)
        return outputs

    # ------------------------------------------------------------ lengths

    def measure(self, slot: int, tokens: list[Key | tuple[str, ...]]) -> None:
        """Bind the lengths of letters; Misfit where they disagree."""
        for key, size in zip(tokens, self.node.shape(slot), strict=False):
            if isinstance(key, tuple) and not isinstance(key[-1], int):
                self.measure_product(key, size)  # type: ignore[arg-type]
                continue
            known = self.length.get(key)  # type: ignore[arg-type]
            if known is None or known == 1:
                self.length[key] = size  # type: ignore[index]
            elif isinstance(size, int) and size != 1 and isinstance(known, int) and size != known:
                raise Misfit(f"axis {key!r} of {self.rule.pattern!r} is {known} and {size}")
            elif isinstance(size, int) and size != 1:
                self.length[key] = size  # type: ignore[index]

    def number(self, name: str) -> int:
        """The length of a letter of a product."""
        return int(self.length[name])  # type: ignore[arg-type]  # the walk catches what a symbol raises

    def measure_product(self, names: tuple[str, ...], size: Dim) -> None:
        if not isinstance(size, int):
            raise Misfit(f"{names} is a product and has no fixed length")
        unknown = [n for n in names if n not in self.length]
        rest = prod(self.number(n) for n in names if n in self.length)
        if len(unknown) > 1 or rest == 0 or size % rest or (not unknown and rest != size):
            raise Misfit(f"length {size} is not the product {names}")
        for name in unknown:
            self.length[name] = size // rest

    # ------------------------------------------------------------ binding

    def bind(self, slot: int, operand: Tensor, tokens: list[Key | tuple[str, ...]]) -> None:
        shape = self.node.shape(slot)
        for i, key in enumerate(tokens):
            if isinstance(key, tuple) and key[0] == "kernel":
                why = self.node.why("kernel position")
                self.causes.freeze(why if operand.axes[i] is None else operand.axes[i], why)  # type: ignore[arg-type]
                operand.axes[i] = why
            elif isinstance(key, tuple) and not isinstance(key[-1], int):
                self.bind_product(operand, i, key)  # type: ignore[arg-type]
            elif shape[i] == 1 and self.length[key] != 1:  # type: ignore[index]
                if operand.axes[i] is None:
                    operand.axes[i] = self.node.single()
            elif operand.axes[i] is None:
                operand.axes[i] = self.letter(key)  # type: ignore[arg-type]
            else:
                self.equal(key, operand.axes[i])  # type: ignore[arg-type]

    def letter(self, key: Key) -> Axis:
        """The axis of a letter; fresh causes where it has none."""
        if key not in self.env:
            size = self.length[key]
            if (
                isinstance(key, str)
                and key not in self.made
                and key not in self.from_data
                and (self.from_data or self.carriers(key) < 2)
            ):
                self.env[key] = self.node.why(
                    "a parameter of the op" if self.from_data else "a sum over a constant"
                )
                return self.env[key]
            self.env[key] = (
                self.causes.fresh(size, self.node.single())
                if isinstance(size, int)
                else self.node.why("dynamic axis")
            )
        return self.env[key]

    def carriers(self, name: str) -> int:
        """How many operands have an axis of that letter."""
        return sum(
            any(name == token or isinstance(token, tuple) and name in token for token in tokens)
            for tokens in self.tokens
            if tokens is not None
        )

    def equal(self, key: Key, axis: Axis) -> None:
        if key not in self.env:
            self.env[key] = axis
        else:
            self.causes.unify(self.env[key], axis)
            if isinstance(axis, int):
                self.env[key] = axis

    def bind_product(self, operand: Tensor, i: int, names: tuple[str, ...]) -> None:
        axis = operand.axes[i]
        if axis is None:
            operand.axes[i] = self.product(names)
            return
        for n, name in enumerate(names[:-1]):
            rest = prod(self.number(x) for x in names[n + 1 :])
            row, axis = self.causes.split(axis, self.number(name), rest, self.node.single())
            self.equal(name, row)
        self.equal(names[-1], axis)

    def product(self, names: tuple[str, ...]) -> Axis:
        axis, size = self.letter(names[0]), self.number(names[0])
        for name in names[1:]:
            more = self.number(name)
            axis, size = self.causes.merge(axis, size, self.letter(name), more), size * more
        return axis

    def freeze(self) -> None:
        """Letters that are never cut, and those along which the op mixes."""
        for key, axis in list(self.env.items()):
            name = key[0]
            spatial = "spatial axis" if name == SPATIAL else None
            if name in self.frozen:
                self.stop(key, axis, spatial or f"{self.node.op} fixes this axis")
            elif name in self.rule.means and not self.node.floating():
                self.stop(key, axis, f"{self.node.op} of integers mixes along this axis")
            elif name in self.rule.mixes:
                if self.allowed and isinstance(axis, np.ndarray):
                    self.node.record.mixed.append(axis)
                else:
                    self.stop(key, axis, spatial or f"{self.node.op} mixes along this axis")

    def stop(self, key: Key, axis: Axis, text: str) -> None:
        why = self.node.why(text)
        self.causes.freeze(axis, why)
        self.env[key] = axis if isinstance(axis, int) else why

    # ------------------------------------------------------------ results

    def output(self, index: int, tokens: tuple[Token, ...]) -> list[Axis]:
        shape = (
            self.node.record.shapes.shape(self.node.proto.output[index])
            if self.node.proto.output[index]
            else ()
        )
        axes: list[Axis] = []
        for token in tokens:
            if token == LEADING:
                count = max(
                    [k[1] + 1 for k in self.length if isinstance(k, tuple) and k[0] == LEADING],
                    default=0,
                )
                axes += [self.leading((LEADING, k)) for k in reversed(range(count))]
            elif token == SPATIAL:
                axes += [
                    self.env[k]
                    for k in sorted(k for k in self.env if isinstance(k, tuple) and k[0] == SPATIAL)
                ]
            elif token == ONE:
                axes.append(self.node.single())
            elif isinstance(token, tuple):
                axes.append(self.product(token))
            else:
                axes.append(self.letter(token))
        if shape is not None and len(shape) != len(axes) and self.node.proto.output[index]:
            raise Misfit(
                f"{self.rule.pattern!r} gives {len(axes)} axes for an output of {len(shape)}"
            )
        return axes

    def shape(self, tokens: tuple[Token, ...]) -> tuple[Dim, ...]:
        """Lengths of an output's axes, None where the pattern does not say them."""
        dims: list[Dim] = []
        for token in tokens:
            if token in (LEADING, SPATIAL):
                keys = sorted(
                    (k for k in self.length if isinstance(k, tuple) and k[0] == token),
                    reverse=token == LEADING,
                )
                dims += [None if token in self.rule.freeze else self.length[k] for k in keys]
            elif isinstance(token, tuple):
                sizes = [self.length.get(n) for n in token]
                dims.append(prod(sizes) if all(isinstance(s, int) for s in sizes) else None)  # type: ignore[arg-type]
            else:
                dims.append(self.length.get(token))
        return tuple(dims)

    def leading(self, key: Key) -> Axis:
        """A broadcast axis; all operands may have length 1 there."""
        return self.env[key] if key in self.env else self.letter(key)

    def finish(self, present: list[tuple[int, list[Key | tuple[str, ...]]]]) -> None:
        """Masks, roles of the initializers' axes, refits and MACs."""
        contracted = set(self.pattern.contracted) | set(self.rule.sums)
        makes = bool(
            self.from_data or self.rule.macs
        )  # constants that are only changed go on to what makes channels of them
        for slot, tokens in present:
            operand = self.node.operands[slot]
            for i, key in enumerate(tokens):
                ids = operand.axes[i]  # type: ignore[union-attr]
                if not isinstance(ids, np.ndarray):
                    continue
                names = [key] if isinstance(key, str) else [n for n in key if isinstance(n, str)]
                live = [n for n in names if isinstance(self.env.get(n), np.ndarray)]
                summed = any(n in contracted for n in live)
                if summed and (not operand.constant or not contracted & self.from_data & set(live)):  # type: ignore[union-attr]
                    self.node.record.masks.append(Mask(self.node.index, slot, i, ids))
                made = makes and any(n in self.made and n not in self.from_data for n in live)
                role = "produces" if made else "consumes" if summed else "carries"
                for origin in operand.origins:  # type: ignore[union-attr]
                    self.node.record.hints.append((origin, ids, role))
        for name, letter in self.rule.refit.items():
            axis = (
                self.env.get(letter) if " " not in letter else self.product(tuple(letter.split()))
            )
            if isinstance(axis, np.ndarray):
                listed = self.node.attribute(name)
                entries = (axis,) * (len(listed) if isinstance(listed, list) else 1)
                self.node.record.refits.append(
                    Refit(
                        self.node.index, ("attribute", name), entries, not isinstance(listed, list)
                    )
                )
        averaged = tuple(
            a for a in (self.env.get(n) for n in self.rule.means) if isinstance(a, np.ndarray)
        )
        if averaged:
            self.node.record.averages.append(Average(self.node.index, averaged))
        for term in self.rule.macs:
            self.count(term)

    def count(self, term: str) -> None:
        """One product of the multiply-accumulates."""
        factor, axes = 1, []
        for word in term.split():
            keys: Collection[Key] = (
                [k for k in self.length if isinstance(k, tuple) and k[0] == LEADING]
                if word == LEADING
                else [word]
            )
            if word in "*@#":
                factor *= self.positions(word)
                continue
            for key in keys:
                axis, size = self.env.get(key), self.length.get(key)
                if isinstance(axis, np.ndarray):
                    axes.append(axis)
                elif isinstance(size, int):
                    factor *= size
        self.node.record.products.append(Product(self.node.index, factor, tuple(axes)))

    def positions(self, word: str) -> int:
        weight = 3 if self.node.op == "QLinearConv" else 1
        shape = {
            "*": lambda: self.node.out_shape(),
            "@": lambda: self.node.shape(0),
            "#": lambda: self.node.shape(weight),
        }[word]()
        return prod(d for d in shape[2:] if isinstance(d, int))

    def mask_recurrent(self, slot: int) -> None:
        operand = self.node.operands[slot]
        if operand is not None and isinstance(operand.axes[-1], np.ndarray):
            self.node.record.masks.append(
                Mask(self.node.index, slot, len(operand.axes) - 1, operand.axes[-1], recurrent=True)
            )


def _expand(
    tokens: tuple[Token, ...], shape: tuple[Dim, ...], slot: int
) -> list[Key | tuple[str, ...]] | None:
    """One token an axis: marks become (mark, k), `...` counted from the right, `*` from the left; kernel axes of weights apart."""
    marks = [t for t in tokens if t in (SPATIAL, LEADING)]
    extra = len(shape) - (len(tokens) - len(marks))
    if (not marks and extra) or extra < 0:
        if prod(d if isinstance(d, int) else 2 for d in shape) == 1:
            return None  # a scalar written with some axes of length 1
        raise Misfit(f"operand {slot} of rank {len(shape)} does not have the axes {tokens}")
    out: list[Key | tuple[str, ...]] = []
    for token in tokens:
        if token == LEADING:
            out += [(LEADING, k) for k in reversed(range(extra))]
        elif token == SPATIAL:
            out += [(SPATIAL if slot == 0 else "kernel", k) for k in range(extra)]
        else:
            out.append(token)
    return out


def shapes(node: Node, rule: Rule) -> list[tuple[Dim, ...]]:
    """Shapes of the outputs of a node under a rule, as far as the pattern says them; Misfit where the rule does not fit."""
    match = _Match(node, rule, False)
    match.measured()
    return [match.shape(tokens) for tokens in match.pattern.outputs]


def apply(node: Node, rule: Rule, allowed: bool) -> list[list[Axis]]:
    """Axes of the outputs of a node under a rule; Misfit where the rule does not fit it."""
    return _Match(node, rule, allowed).run()
