"""ResNet-18 and MobileNetV2 as exported from torchvision, with random weights.

Batch normalization is folded.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from graph_text import net
from onnx import ModelProto

CLASSES = 10


@dataclass
class _Text:
    """The text of a model that grows; see graph_text.net."""

    weights: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)

    def node(self, text: str) -> str:
        """Append a node; return its output."""
        name = f"t{len(self.nodes)}"
        self.nodes.append(f"{name} = {text}")
        return name

    def conv(
        self, x: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
    ) -> str:
        n, pad = len(self.nodes), kernel // 2
        self.weights += [
            f"float[{outputs},{inputs // groups},{kernel},{kernel}] w{n}",
            f"float[{outputs}] b{n}",
        ]
        return self.node(
            f"Conv<group={groups}, kernel_shape=[{kernel},{kernel}], "
            f"pads=[{pad},{pad},{pad},{pad}], strides=[{stride},{stride}]>({x}, w{n}, b{n})"
        )

    def model(self, x: str, width: int, side: int) -> ModelProto:
        """Return the model with a classifier after x."""
        self.weights += [f"float[{CLASSES},{width}] wl", f"float[{CLASSES}] bl"]
        flat = self.node(f"Flatten<axis=1>({self.node(f'GlobalAveragePool({x})')})")
        nodes = [*self.nodes, f"y = Gemm<transB=1>({flat}, wl, bl)"]
        return net(f"float[1,3,{side},{side}] x | {', '.join(self.weights)} | {'; '.join(nodes)}")


def resnet18(side: int = 64) -> ModelProto:
    """Return ResNet-18 (He et al. 2015, table 1): four stages of two basic blocks."""
    net = _Text()
    x = net.node(f"Relu({net.conv('x', 3, 64, 7, 2)})")
    x, width = net.node(f"MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>({x})"), 64
    for stage in range(4):
        for block in range(2):
            wider = 64 << stage
            stride = 2 if stage and not block else 1
            inner = net.node(f"Relu({net.conv(x, width, wider, 3, stride)})")
            branch = net.conv(inner, wider, wider)
            short = net.conv(x, width, wider, 1, stride) if width != wider else x
            x, width = net.node(f"Relu({net.node(f'Add({branch}, {short})')})"), wider
    return net.model(x, width, side)


def mobilenet_v2(side: int = 64) -> ModelProto:
    """Return MobileNetV2 (Sandler et al. 2018, table 2)."""
    net = _Text(weights=["float lo = {0.0}", "float hi = {6.0}"])

    def relu6(x: str) -> str:
        return net.node(f"Clip({x}, lo, hi)")

    x, width = relu6(net.conv("x", 3, 32, 3, 2)), 32
    for t, c, n, s in (  # expansion, channels, repeats, stride
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for repeat in range(n):
            stride, wide = 1 if repeat else s, t * width
            inner = relu6(net.conv(x, width, wide, 1)) if t > 1 else x
            out = net.conv(relu6(net.conv(inner, wide, wide, 3, stride, wide)), wide, c, 1)
            x, width = net.node(f"Add({x}, {out})") if stride == 1 and width == c else out, c
    return net.model(relu6(net.conv(x, width, 1280, 1)), 1280, side)
