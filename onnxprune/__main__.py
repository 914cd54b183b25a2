"""Entry point of `python -m onnxprune`."""

from onnxprune.cli import main

main()
