"""Operators on sequences: reversal, causal convolution and gated activations."""

from __future__ import annotations

from onnxprune.analysis.rule import Rule, View, axes_letters

_TRAILING = "defghi"  # letters of channel axes after the positions
# Attributes of onnxruntime's extended form, which selects channels or lays out its state otherwise
_EXTENDED = {
    "state_update_capacity": 0,
    "state_channels_last": -1,
    "state_length": 0,
    "input_channel_offset": 0,
    "input_channels": 0,
}


def reverse_sequence(view: View) -> Rule:
    """Reverse the first positions of `time_axis`, as many per sequence as its length says."""
    names = axes_letters(view)
    time = names[view.integer("time_axis", 0)]
    batch = names[view.integer("batch_axis", 1)]
    return Rule(f"{' '.join(names)}, {batch} -> {' '.join(names)}", freeze=time)


def causal_conv(view: View) -> Rule | None:
    """Convolve each channel with its own kernel over current and past positions."""
    if any(view.integer(name, default) != default for name, default in _EXTENDED.items()):
        return None
    rank, last = view.rank(0), bool(view.integer("channels_last", 0))
    # a state per position of a window has an axis in front
    window = "w " if view.integer("state_window", 0) else ""
    if last:
        channels = _TRAILING[: rank - 2]
        spatial, product = "l", f"({' '.join(channels)})" if len(channels) > 1 else channels
        data = f"b l {' '.join(channels)}"
        past, state = f"{window}b p {' '.join(channels)}", f"{window}b 1 {' '.join(channels)}"
    else:
        spatial, channels, product = "xyzl"[6 - rank :], "c", "c"
        data = f"b c {' '.join(spatial)}"
        before = " ".join(spatial[:-1])
        past, state = f"{window}b c {before} p", f"{window}b c {before} 1"
    kernel = "uvk"[3 - (view.rank(1) - 2) :]
    left = [data, f"{product} i {' '.join(kernel)}", product, past][: max(view.inputs, 2)]
    if view.inputs > 2 and not view.rank(2):
        left[2] = ""
    fixed = f"{window}b p i {spatial} {kernel}"
    return Rule(
        f"{', '.join(left)} -> {data}, {state}",
        freeze=fixed.replace("b ", ""),
        macs=(" ".join(["b", *channels, *spatial, *kernel]),),
    )


def swiglu(view: View) -> Rule:
    """Gate one tensor by another; onnxruntime also takes both as halves of one axis."""
    if view.inputs > 1:
        return Rule("..., ... -> ...")
    return Rule("... (j c) -> ... c", {"j": 2}, freeze="j")
