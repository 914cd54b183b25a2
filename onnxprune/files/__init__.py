"""Atomic file writes, JSON lines that survive a kill, and hashes."""

from onnxprune.files.json_files import (
    append_json_line,
    encode,
    hash_key,
    json_lines,
    to_json,
    write_bytes,
    write_json,
)
from onnxprune.files.regular import BLOCK_BYTES, open_regular, read_text, sha256
from onnxprune.files.transaction import (
    DATA,
    HASH_DIGITS,
    Staging,
    remove_partial_files,
    replace_folder,
    replacing,
    staging,
)

__all__ = [
    "BLOCK_BYTES",
    "DATA",
    "HASH_DIGITS",
    "Staging",
    "append_json_line",
    "encode",
    "hash_key",
    "json_lines",
    "open_regular",
    "read_text",
    "remove_partial_files",
    "replace_folder",
    "replacing",
    "sha256",
    "staging",
    "to_json",
    "write_bytes",
    "write_json",
]
