"""Features of this CPU that decide which channel counts run fast."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

# float32 lanes per vector register; onnxruntime blocks channels by them
AVX512_CHANNELS, AVX2_CHANNELS, OTHER_CHANNELS = 16, 8, 4


def _read_cpuinfo() -> list[str]:
    """Return the lines of /proc/cpuinfo, [] on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.splitlines()


@lru_cache(maxsize=1)
def flags() -> frozenset[str]:
    """Return the instruction sets by their Linux names; empty if the system does not list them."""
    for line in _read_cpuinfo():
        # "flags" on x86, "Features" on Arm; the first CPU stands for all
        if line.lower().startswith(("flags", "features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def vector_channels(known: frozenset[str] | None = None) -> int:
    """Return the float32 channels per block: 16 with AVX-512, 8 with AVX2, else 4."""
    known = flags() if known is None else known
    # the widest first: such a CPU lists the narrower sets as well
    if "avx512f" in known:
        return AVX512_CHANNELS
    return AVX2_CHANNELS if "avx2" in known else OTHER_CHANNELS


def describe_cpu() -> str:
    """Return model name and vector width, for reports and cache keys."""
    # where /proc/cpuinfo has no "model name", as on Arm or outside Linux
    name = platform.processor() or platform.machine()
    for line in _read_cpuinfo():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    return f"{name} ({vector_channels()} lanes)"
