"""Settings of the documentation: sphinx-build -W docs site."""

from __future__ import annotations

from typing import Any

import onnxprune

project = "onnxprune"
author = "onnxprune contributors"
version = release = onnxprune.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme = "furo"
html_title = f"onnxprune {version}"
# the button copies commands without the prompt and their output
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"
default_role = "code"  # docstrings write names as in Markdown
myst_heading_anchors = 3
napoleon_google_docstring = False
napoleon_use_rtype = False
autodoc_typehints = "description"
autodoc_member_order = "bysource"


def setup(app: Any) -> None:
    """Escape |: absolute values in docstrings, substitutions in reStructuredText."""
    app.connect("autodoc-process-docstring", _escape)


def _escape(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = [line.replace("|", "\\|") for line in lines]
