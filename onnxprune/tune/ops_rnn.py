"""LSTM, GRU and RNN, a step at a time, gates in ONNX's order."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.tune.call import Call, Row, Tensor, torch

F = torch.nn.functional
Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _direction(
    step: Step, inputs: Tensor, state: tuple[Tensor, ...], backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(outputs of all steps, last state) of one direction."""
    outputs = []
    for x in reversed(inputs.unbind(0)) if backwards else inputs.unbind(0):
        state = step(x, state)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _bias(b: Tensor | None, gates: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """(input bias, recurrent bias), zero where the node has none."""
    if b is None:
        zero = like.new_zeros(gates)
        return zero, zero
    return b[:gates], b[gates:]


def _lstm_step(w: Tensor, r: Tensor, b: Tensor | None, peephole: Tensor | None) -> Step:
    """Gates i, o, f, c; peepholes i, o, f."""
    hidden = r.shape[-1]
    wb, rb = _bias(b, 4 * hidden, w)
    pi, po, pf = peephole.split(hidden) if peephole is not None else (0.0, 0.0, 0.0)

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, cell = state
        i, o, f, g = (F.linear(x, w, wb) + F.linear(h, r, rb)).split(hidden, -1)
        i, f = torch.sigmoid(i + pi * cell), torch.sigmoid(f + pf * cell)
        cell = f * cell + i * torch.tanh(g)
        return torch.sigmoid(o + po * cell) * torch.tanh(cell), cell

    return step


def _gru_step(w: Tensor, r: Tensor, b: Tensor | None, linear_before_reset: bool) -> Step:
    """Gates z, r, h."""
    hidden = r.shape[-1]
    wb, rb = _bias(b, 3 * hidden, w)
    split = 2 * hidden

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = state
        given = F.linear(x, w, wb)
        z, reset = torch.sigmoid(given[:, :split] + F.linear(h, r[:split], rb[:split])).split(
            hidden, -1
        )
        if linear_before_reset:
            new = torch.tanh(given[:, split:] + reset * F.linear(h, r[split:], rb[split:]))
        else:
            new = torch.tanh(given[:, split:] + F.linear(reset * h, r[split:], rb[split:]))
        return ((1 - z) * new + z * h,)

    return step


def _rnn_step(w: Tensor, r: Tensor, b: Tensor | None) -> Step:
    wb, rb = _bias(b, r.shape[-1], w)
    return lambda x, state: (torch.tanh(F.linear(x, w, wb) + F.linear(state[0], r, rb)),)


def _recurrent(
    c: Call,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    *rest: Tensor | None,
) -> tuple[Tensor, ...]:
    """Y (steps, directions, batch, hidden), Y_h and, for an LSTM, Y_c."""
    if (
        lengths is not None
        or set(c.get("activations", [])) - {"Sigmoid", "Tanh"}
        or c.get("clip", 0)
        or c.get("layout", 0)
    ):
        raise c.unsupported("sequence lengths, other activations, clipping or batch-first layout")
    states = 2 if c.op == "LSTM" else 1
    given, peephole = (
        [*rest, None, None][:states],
        [*rest, None, None, None][2] if c.op == "LSTM" else None,
    )
    backwards = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[
        c.get("direction", "forward")
    ]
    zero = x.new_zeros(x.shape[1], r.shape[-1])
    outputs, last = [], []
    for d, reverse in enumerate(backwards):
        bias = b[d] if b is not None else None
        if c.op == "LSTM":
            step = _lstm_step(w[d], r[d], bias, peephole[d] if peephole is not None else None)
        else:
            step = (
                _gru_step(w[d], r[d], bias, bool(c.get("linear_before_reset", 0)))
                if c.op == "GRU"
                else _rnn_step(w[d], r[d], bias)
            )
        y, state = _direction(step, x, tuple(zero if s is None else s[d] for s in given), reverse)
        outputs.append(y)
        last.append(state)
    return torch.stack(outputs, 1), *(torch.stack(part) for part in zip(*last, strict=False))


RECURRENT: dict[str, Row] = {
    name: Row(_recurrent, trainable=(1, 2, 3)) for name in ("LSTM", "GRU", "RNN")
}
