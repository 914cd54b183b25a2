"""Long description of the package: README.md without what only a checkout has.

Pages of package indexes show neither pictures with relative addresses nor files that relative
links name.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

ABSOLUTE = r"(?:https?:|#)"


def describe(readme: str) -> str:
    """Return a README without relative pictures, and with the text of its relative links."""
    text = re.sub(rf"!\[[^\]]*\]\((?!{ABSOLUTE})[^)]*\)\n*", "", readme)
    text = re.sub(rf"\[([^\]]*)\]\((?!{ABSOLUTE})[^)]*\)", r"\1", text)
    return re.sub(r"<!--.*?-->\n*", "", text, flags=re.DOTALL)


if __name__ == "__main__":
    readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    setup(long_description=describe(readme), long_description_content_type="text/markdown")
