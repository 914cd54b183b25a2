"""What this CPU can do, as far as it decides which widths are fast."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

AVX512_CHANNELS, AVX2_CHANNELS, OTHER_CHANNELS = (
    16,
    8,
    4,
)  # float32 lanes that onnxruntime blocks channels by


@lru_cache(maxsize=1)
def flags() -> frozenset[str]:
    """Instruction sets by their Linux names; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    line = next(
        (line for line in text.splitlines() if line.lower().startswith(("flags", "features"))), ""
    )
    return frozenset(line.partition(":")[2].split())


def vector_channels(known: frozenset[str] | None = None) -> int:
    """Channels of float32 in a block: 16 with AVX-512, 8 with AVX2, else 4."""
    known = flags() if known is None else known
    return (
        AVX512_CHANNELS
        if "avx512f" in known
        else AVX2_CHANNELS
        if "avx2" in known
        else OTHER_CHANNELS
    )


def describe_cpu() -> str:
    """Model name and vector width, for a report and as part of a cache's key."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    name = next(
        (
            line.partition(":")[2].strip()
            for line in text.splitlines()
            if line.startswith("model name")
        ),
        platform.processor() or platform.machine(),
    )
    return f"{name} ({vector_channels()} lanes)"
