"""Torch implementations of LSTM, GRU and RNN: one time step after the other, ONNX's gate order."""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.tune.call import Call, Row, Tensor, torch

F = torch.nn.functional
Cell = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _run_direction(
    step: Cell, inputs: Tensor, state: tuple[Tensor, ...], backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the outputs of all steps and the last state of one direction."""
    outputs = []
    for x in reversed(inputs.unbind(0)) if backwards else inputs.unbind(0):
        state = step(x, state)
        # the hidden state; the cell of an LSTM is no output of a step
        outputs.append(state[0])
    # outputs are stored by time, in either direction
    return torch.stack(outputs[::-1] if backwards else outputs), state


def _split_bias(b: Tensor | None, gates: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return input bias and recurrent bias, zeros if the node has none."""
    if b is None:
        zero = like.new_zeros(gates)
        return zero, zero
    return b[:gates], b[gates:]


def _lstm_cell(w: Tensor, r: Tensor, b: Tensor | None, peephole: Tensor | None) -> Cell:
    """Return an LSTM step; gates in the order i, o, f, c, peepholes i, o, f."""
    hidden = r.shape[-1]
    wb, rb = _split_bias(b, 4 * hidden, w)
    pi, po, pf = peephole.split(hidden) if peephole is not None else (0.0, 0.0, 0.0)

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, cell = state
        i, o, f, g = (F.linear(x, w, wb) + F.linear(h, r, rb)).split(hidden, -1)
        i, f = torch.sigmoid(i + pi * cell), torch.sigmoid(f + pf * cell)
        cell = f * cell + i * torch.tanh(g)
        # unlike the other gates, the output gate reads the new cell
        return torch.sigmoid(o + po * cell) * torch.tanh(cell), cell

    return step


def _gru_cell(w: Tensor, r: Tensor, b: Tensor | None, linear_before_reset: bool) -> Cell:
    """Return a GRU step; gates in the order z, r, h."""
    hidden = r.shape[-1]
    wb, rb = _split_bias(b, 3 * hidden, w)
    # z and r share a product; h waits for r
    split = 2 * hidden

    def step(x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (h,) = state
        given = F.linear(x, w, wb)
        gates = torch.sigmoid(given[:, :split] + F.linear(h, r[:split], rb[:split]))
        z, reset = gates.split(hidden, -1)
        if linear_before_reset:
            new = torch.tanh(given[:, split:] + reset * F.linear(h, r[split:], rb[split:]))
        else:
            new = torch.tanh(given[:, split:] + F.linear(reset * h, r[split:], rb[split:]))
        return ((1 - z) * new + z * h,)

    return step


def _rnn_cell(w: Tensor, r: Tensor, b: Tensor | None) -> Cell:
    """Return a step of a plain recurrent network."""
    wb, rb = _split_bias(b, r.shape[-1], w)
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
    """Return Y (steps, directions, batch, hidden), Y_h and, for an LSTM, Y_c."""
    other_activations = set(c.get("activations", [])) - {"Sigmoid", "Tanh"}
    # one loop over full sequences has no place for these; a wrong forward pass would be silent
    if lengths is not None or other_activations or c.get("clip", 0) or c.get("layout", 0):
        raise c.unsupported("sequence lengths, other activations, clipping or batch-first layout")
    # initial_h, and for an LSTM initial_c and peepholes
    initial_h, initial_c, peephole, *_ = [*rest, None, None, None]
    initial = (initial_h, initial_c) if c.op == "LSTM" else (initial_h,)
    zero = x.new_zeros(x.shape[1], r.shape[-1])
    outputs, last = [], []
    for d, reverse in enumerate(_REVERSED[c.get("direction", "forward")]):
        cell = _build_cell(c, w[d], r[d], _select(b, d), _select(peephole, d))
        state = tuple(zero if s is None else s[d] for s in initial)
        y, state = _run_direction(cell, x, state, reverse)
        outputs.append(y)
        last.append(state)
    return torch.stack(outputs, 1), *(torch.stack(part) for part in zip(*last, strict=True))


def _select(tensor: Tensor | None, direction: int) -> Tensor | None:
    """Return one direction's part of an optional input."""
    return None if tensor is None else tensor[direction]


def _build_cell(c: Call, w: Tensor, r: Tensor, b: Tensor | None, peephole: Tensor | None) -> Cell:
    """Return the step of one direction."""
    if c.op == "LSTM":
        return _lstm_cell(w, r, b, peephole)
    if c.op == "GRU":
        return _gru_cell(w, r, b, bool(c.get("linear_before_reset", 0)))
    return _rnn_cell(w, r, b)


_REVERSED = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
# weights and biases; initial states and peepholes stay constant
RECURRENT: dict[str, Row] = {
    name: Row(_recurrent, trainable=(1, 2, 3)) for name in ("LSTM", "GRU", "RNN")
}
