"""Applies a row of the rule table to a node: binds letters, unifies axes, names output axes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import numpy as np

from onnxprune.analysis.averages import Average, Pin, RootMean
from onnxprune.analysis.axis_keys import KERNEL, Factors, Key, Nth, Tokens, expand, letters_of
from onnxprune.analysis.causes import Axis
from onnxprune.analysis.counting import count
from onnxprune.analysis.factors import unfold
from onnxprune.analysis.folded import MERGED, Folded
from onnxprune.analysis.notation import LEADING, ONE, SPATIAL, Token, letters, parse
from onnxprune.analysis.rule import Misfit, Rule
from onnxprune.analysis.state import KERNEL_POSITION, Mask, Node, SizeLiteral, Tensor
from onnxprune.ir.values import Dim, is_static, product, quotient


@dataclass
class _Match:
    """One application of a rule.

    Attributes
    ----------
    node
        Node the rule is applied to.
    rule
        Row of the table.
    allowed
        Whether axes along which the operator mixes may be cut.
    axes
        Axis per letter.
    length
        Length per letter.
    places
        (tensor, axis) of the dynamic axes of each letter.
    """

    node: Node
    rule: Rule
    allowed: bool
    axes: dict[Key, Axis] = field(default_factory=dict)
    length: dict[Key, Dim] = field(default_factory=dict)
    places: dict[Key, list[tuple[str, int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Match the tokens of the pattern with the operands."""
        self.pattern = parse(self.rule.pattern)
        self.causes = self.node.record.causes
        self.frozen = set(self.rule.freeze)
        self.tokens: list[Tokens | None] = []
        for slot, operand in enumerate(self.node.operands):
            if operand is None or slot >= len(self.pattern.inputs):
                self.tokens.append(None)
                continue
            self.tokens.append(expand(self.pattern.inputs[slot], self.node.shape(slot), slot))
        self.output_letters = {x for axes in self.pattern.outputs for x in letters(axes)}
        data_tokens = [
            token
            for operand, tokens in zip(self.node.operands, self.tokens, strict=True)
            if operand is not None and tokens is not None and not operand.constant
            for token in tokens
        ]
        self.has_data = bool(data_tokens)
        self.data_letters = {name for token in data_tokens for name in letters_of(token)}
        for name, source in self.rule.let.items():
            self.length[name] = self.node.integer(source, 1) if isinstance(source, str) else source

    def measured(self) -> list[tuple[int, Tensor, Tokens]]:
        """Bind all lengths; return the operands that the pattern covers, with their tokens."""
        present = [
            (slot, operand, tokens)
            for slot, (operand, tokens) in enumerate(
                zip(self.node.operands, self.tokens, strict=True)
            )
            if operand is not None and tokens is not None
        ]
        # twice: a broadcast length of 1 may have become that of another operand
        for slot, _, tokens in present * 2:
            self.measure(slot, tokens)
        return present

    def run(self) -> list[list[Axis]]:
        """Bind all operands; return the axes of each output."""
        present = self.measured()
        # activations first: a letter that none of them has belongs to the operator alone
        for constant in (False, True):
            for slot, operand, tokens in present:
                if operand.constant == constant:
                    self.bind(slot, operand, tokens)
        self.freeze()
        if self.rule.masked is not None:
            self.mask_recurrent(self.rule.masked)
        self.mask_parameters()
        outputs = [
            self.output(name, tokens)
            for name, tokens in zip(self.node.proto.output, self.pattern.outputs, strict=False)
        ]
        self.record_operands(present)
        self.record_literals()
        self.record_averages()
        for term in self.rule.macs:
            macs = count(self.node, self.pattern, term, self.axes, self.length, self.places)
            self.node.record.products.append(macs)
        return outputs

    # Lengths

    def measure(self, slot: int, tokens: Tokens) -> None:
        """Bind the lengths of letters; Misfit if they disagree."""
        for axis, (key, size) in enumerate(zip(tokens, self.node.shape(slot), strict=False)):
            if not isinstance(key, str | Nth):
                self.measure_product(key, size)
                continue
            if not isinstance(size, int):
                self.places.setdefault(key, []).append((self.node.names[slot], axis))
            known = self.length.get(key)
            if known is None or known == 1:
                self.length[key] = size
            # a dynamic length, or one of 1, adds nothing to a length that is known
            elif not isinstance(size, int) or size == 1:
                continue
            elif isinstance(known, int) and size != known:
                name = key if isinstance(key, str) else f"{key.mark}[{key.number}]"
                raise Misfit(f"axis {name} of {self.rule.pattern!r} has lengths {known} and {size}")
            else:
                self.length[key] = size

    def measure_product(self, names: Factors, size: Dim) -> None:
        """Bind the length of the one letter of a product that is unknown."""
        unknown = [n for n in names if n not in self.length]
        if not isinstance(size, int):
            self.measure_dynamic(names, unknown, size)
            return
        rest = prod(self.number(n) for n in names if n in self.length)
        if len(unknown) > 1 or rest == 0 or size % rest or (not unknown and rest != size):
            raise Misfit(f"length {size} is not the product ({' '.join(names)})")
        for name in unknown:
            self.length[name] = size // rest

    def measure_dynamic(self, names: Factors, unknown: list[str], size: Dim) -> None:
        """Bind the length of the one unknown letter of a product of dynamic length."""
        if len(unknown) > 1:
            raise Misfit(f"axis ({' '.join(names)}) is a product and dynamic")
        rest = [self.length[n] for n in names if n in self.length]
        known = size is not None and None not in rest
        self.length |= {n: quotient(size, product(rest)) if known else None for n in unknown}

    def number(self, name: str) -> int:
        """Return the length of a letter of a product; Misfit if it is not fixed."""
        size = self.length.get(name)
        if not isinstance(size, int):
            raise Misfit(f"axis {name} is part of a product and dynamic")
        return size

    # Binding

    def bind(self, slot: int, operand: Tensor, tokens: Tokens) -> None:
        """Tie the axes of an operand to those of its letters."""
        shape = self.node.shape(slot)
        for i, key in enumerate(tokens):
            axis = operand.axes[i]
            if not isinstance(key, str | Nth):
                self.bind_product(operand, i, key)
            elif isinstance(key, Nth) and key.mark == KERNEL:
                why = self.node.why(KERNEL_POSITION)
                self.causes.freeze(why if axis is None else axis, why)
                operand.axes[i] = why
            elif shape[i] == 1 and self.length[key] != 1:
                # a broadcast axis has no positions of the letter
                if axis is None:
                    operand.axes[i] = self.node.single()
            elif axis is None:
                operand.axes[i] = self.letter(key)
            else:
                if isinstance(axis, Folded):
                    axis = operand.axes[i] = unfold(self.causes, axis, self.length[key])
                self.equal(key, axis)

    def letter(self, key: Key) -> Axis:
        """Return the axis of a letter; of fresh causes if it has none yet."""
        if key in self.axes:
            return self.axes[key]
        size = self.length.get(key)  # an axis of an output alone may have no known length
        if isinstance(key, str) and self.without_data(key):
            text = "a parameter of the operator" if self.has_data else "a sum over a constant"
            axis: Axis = self.node.why(text)
        elif key in self.frozen:  # of an output alone: the operands are bound and frozen by now
            axis = self.node.why(f"{self.node.op} fixes this axis")
        elif isinstance(size, int):
            axis = self.causes.fresh(size, self.node.single())
        else:
            axis = self.node.why("dynamic axis")
        self.axes[key] = axis
        return axis

    def without_data(self, name: str) -> bool:
        """Return whether no activation and no output has the letter, and nothing pairs with it."""
        if name in self.output_letters or name in self.data_letters:
            return False
        return self.has_data or self.carriers(name) < 2

    def carriers(self, name: str) -> int:
        """Return how many operands have an axis of the letter."""
        return sum(
            any(name in letters_of(token) for token in tokens)
            for tokens in self.tokens
            if tokens is not None
        )

    def equal(self, key: Key, axis: Axis) -> None:
        """Tie an axis to that of a letter."""
        if key not in self.axes:
            self.axes[key] = axis
            return
        self.causes.unify(self.axes[key], axis)
        if isinstance(axis, int):  # frozen for good: keep the short form
            self.axes[key] = axis

    def bind_product(self, operand: Tensor, i: int, names: Factors) -> None:
        """Tie an axis of an operand to the product of letters."""
        axis = operand.axes[i]
        if axis is None:
            operand.axes[i] = self.product(names)
            return
        if not is_static(
            [self.length.get(n) for n in names]
        ):  # as the height of an image laid out in blocks
            why = int(axis) if isinstance(axis, int) else self.node.why("dynamic axis")
            self.causes.freeze(axis, why)
            for name in names:
                self.equal(name, why)
            return
        # from the outermost letter inwards: each split takes one off
        for n, name in enumerate(names[:-1]):
            rest = prod(self.number(x) for x in names[n + 1 :])
            row, axis = self.causes.split(axis, self.number(name), rest, self.node.single())
            self.equal(name, row)
        self.equal(names[-1], axis)

    def product(self, names: Factors) -> Axis:
        """Return the axis of a product of letters; the letters are frozen if one is dynamic."""
        if not is_static([self.length.get(n) for n in names]):
            why = self.node.why("dynamic axis")
            for name in names:
                self.equal(name, why)
            return why
        axis, size = self.letter(names[0]), self.number(names[0])
        for name in names[1:]:
            more = self.number(name)
            axis, size = self.causes.merge(axis, size, self.letter(name), more), size * more
        return axis

    def freeze(self) -> None:
        """Freeze the letters that are never cut, and those along which the operator mixes."""
        # letters that the operator only passes on: factors of dynamic axes are followed there
        marks = {t for axes in self.pattern.outputs for t in axes if t in (LEADING, SPATIAL)}
        counted = {x for letters_ in self.rule.refit.values() for x in letters_.split()}
        passed = (self.output_letters | marks) - set(self.rule.sums + self.rule.means) - counted
        for key, axis in list(self.axes.items()):
            name = key.mark if isinstance(key, Nth) else key
            spatial = "spatial axis" if name == SPATIAL else None
            if name in self.frozen:
                self.stop(key, axis, spatial or f"{self.node.op} fixes this axis")
            elif name in self.rule.means and not self.node.floating():
                # the factor that corrects a mean after a cut would be rounded
                self.stop(key, axis, f"{self.node.op} of integers mixes along this axis")
            elif name in self.rule.mixes:
                if self.allowed and isinstance(axis, np.ndarray):
                    self.node.record.mixed.append(axis)
                else:
                    self.stop(key, axis, spatial or f"{self.node.op} mixes along this axis")
            elif isinstance(axis, Folded) and name not in passed:
                self.stop(key, axis, MERGED)

    def stop(self, key: Key, axis: Axis, text: str) -> None:
        """Freeze the axis of a letter."""
        why = self.node.why(text)
        self.causes.freeze(axis, why)
        self.axes[key] = axis if isinstance(axis, int) else why

    # Results

    def output(self, name: str, tokens: tuple[Token, ...]) -> list[Axis]:
        """Return the axes of an output; Misfit if its rank is another one."""
        axes: list[Axis] = []
        for token in tokens:
            if token == LEADING:
                # an operand of length 1 binds no axis, so all leading axes may be without one
                axes += [self.letter(k) for k in self.keys(LEADING, self.length)]
            elif token == SPATIAL:
                axes += [self.axes[k] for k in self.keys(SPATIAL, self.axes)]
            elif token == ONE:
                axes.append(self.node.single())
            elif isinstance(token, tuple):
                axes.append(self.product(token))
            else:
                axes.append(self.letter(token))
        shape = self.node.record.shapes.shape(name) if name else None
        if shape is not None and len(shape) != len(axes):
            raise Misfit(
                f"{self.rule.pattern!r} gives {len(axes)} axes for an output of {len(shape)}"
            )
        return axes

    def keys(self, mark: str, table: dict[Key, Axis] | dict[Key, Dim]) -> list[Nth]:
        """Return the axes of a mark that a table has, from the left."""
        keys = [k for k in table if isinstance(k, Nth) and k.mark == mark]
        return sorted(keys, reverse=mark == LEADING)

    def shape(self, tokens: tuple[Token, ...]) -> tuple[Dim, ...]:
        """Return the lengths of an output's axes, None if the pattern does not determine them."""
        dims: list[Dim] = []
        for token in tokens:
            if isinstance(token, tuple):
                sizes = list(map(self.length.get, token))
                dims.append(product(sizes) if None not in sizes else None)
            elif token in (LEADING, SPATIAL):
                fixed = token in self.rule.freeze  # a spatial axis that the operator resizes
                dims += [None if fixed else self.length[k] for k in self.keys(token, self.length)]
            else:
                dims.append(self.length.get(token))
        return tuple(dims)

    def record_operands(self, present: list[tuple[int, Tensor, Tokens]]) -> None:
        """Record masks, and the roles of the axes of initializers."""
        contracted = set(self.pattern.contracted) | set(self.rule.sums)
        scale = self.rule.root_mean[1] if self.rule.root_mean is not None else None
        # an operator on constants alone produces no channels: what consumes its result does
        makes = self.has_data or bool(self.rule.macs)
        for slot, operand, tokens in present:
            for i, key in enumerate(tokens):
                ids = operand.axes[i]
                if not isinstance(ids, np.ndarray):
                    continue
                live = {n for n in letters_of(key) if isinstance(self.axes.get(n), np.ndarray)}
                # a scale is multiplied with the result of the sum
                summed = set() if slot == scale else live & contracted
                # one mask per sum: on the activation if there is one
                masked = operand.constant and bool(summed & self.data_letters)
                if summed and (not masked or slot in self.rule.added):
                    self.mask(slot, i, ids, added=masked)
                role = "consumes" if summed and slot not in self.rule.added else "carries"
                if makes and live & self.output_letters - self.data_letters:
                    role = "produces"
                for origin in operand.origins:
                    self.node.record.hints.append((origin, ids, role))

    def mask(
        self, slot: int, axis: int, ids: np.ndarray, recurrent: bool = False, added: bool = False
    ) -> None:
        """Record an axis of an operand that the node sums over."""
        index, tensor = self.node.index, self.node.names[slot]
        self.node.record.masks.append(Mask(index, slot, tensor, axis, ids, recurrent, added))

    def record_literals(self) -> None:
        """Record the attributes that hold the lengths of letters."""
        for name, letter in self.rule.refit.items():
            if " " in letter:
                axis: Axis | None = self.product(tuple(letter.split()))
            else:
                axis = self.axes.get(letter)
            if not isinstance(axis, np.ndarray):
                continue
            value = self.node.attribute(name)
            listed = isinstance(value, list)
            entries = (axis,) * (len(value) if isinstance(value, list) else 1)
            self.node.record.literals.append(
                SizeLiteral(self.node.index, ("attribute", name), entries, scalar=not listed)
            )

        for name, (letter, default) in self.rule.pins.items():
            axis = self.axes.get(letter)
            if isinstance(axis, np.ndarray):
                self.node.record.pins.append(Pin(self.node.index, name, default, axis))

    def record_averages(self) -> None:
        """Record the axes that the operator averages over."""
        index, averaged = self.node.index, self.prunable(self.rule.means)
        if averaged:
            self.node.record.averages.append(Average(index, averaged))
        if self.rule.root_mean is not None:
            letters, scale = self.rule.root_mean
            root_mean = RootMean(self.prunable(letters), (index, "epsilon"), (index, scale))
            if root_mean.axes:
                self.node.record.root_means.append(root_mean)

    def prunable(self, names: str) -> tuple[np.ndarray, ...]:
        """Return the ids of those of the letters that can be cut."""
        return tuple(a for a in map(self.axes.get, names) if isinstance(a, np.ndarray))

    def mask_recurrent(self, slot: int) -> None:
        """Record the mask of a weight that feeds outputs back."""
        operand = self.node.operands[slot]
        if operand is None:
            return
        if self.tokens[slot] is None:
            raise Misfit(f"operand {slot} is a single value, not a weight")
        last = operand.axes[-1]
        if isinstance(last, np.ndarray):
            self.mask(slot, len(operand.axes) - 1, last, recurrent=True)

    def mask_parameters(self) -> None:
        """Record the masks of operands that hold the parameters of output channels."""
        for slot, axis in self.rule.zeroed.items():
            operand = self.node.operands[slot] if slot < len(self.tokens) else None
            # a single value, which is written without axes, is one of all channels
            if operand is None or self.tokens[slot] is None:
                continue
            ids = operand.axes[axis]
            if isinstance(ids, np.ndarray):
                # the state that they determine is no operand, so no criterion measures it
                self.mask(slot, axis, ids, added=True)


def shapes(node: Node, rule: Rule) -> list[tuple[Dim, ...]]:
    """Return the shapes of a node's outputs as far as the pattern determines them.

    Raises
    ------
    Misfit
        The rule does not fit the node.
    """
    match = _Match(node, rule, False)
    match.measured()
    return [match.shape(tokens) for tokens in match.pattern.outputs]


def apply(node: Node, rule: Rule, allowed: bool) -> list[list[Axis]]:
    """Return the axes of a node's outputs.

    Parameters
    ----------
    node
        Node with its operands.
    rule
        Row of the table.
    allowed
        Whether axes along which the operator mixes may be cut.

    Raises
    ------
    Misfit
        The rule does not fit the node.
    """
    return _Match(node, rule, allowed).run()
