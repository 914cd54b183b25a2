"""All carriers of external data with all wrong locations, through the command line."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.robustness import markdown
from tests.robustness.carriers import CARRIERS, TRICKS, external
from tests.robustness.fuzz import prepare

CONTROL = "a file in the model's folder"
OUTSIDE_BYTES = b"not for this model" * 1000


def try_all() -> list[dict[str, Any]]:
    """Return the error code of `inspect` per trick and carrier, "" if it accepts the model."""
    prepare()
    rows = []
    for trick in (CONTROL, *TRICKS):
        outcomes = {carrier: _try(carrier, trick) for carrier in CARRIERS}
        expected = "" if trick == CONTROL else TRICKS[trick][2]
        wrong = [name for name, (code, _) in outcomes.items() if code != expected]
        codes = {name: code for name, (code, _) in outcomes.items()}
        # the longest name is in the line of the last carrier
        text = outcomes["initializer"][1]
        rows.append({"trick": trick, "codes": codes, "line": text, "wrong": wrong})
    return rows


def _try(carrier: str, trick: str) -> tuple[str, str]:
    """Return code and line of the error of a process that reads a model; "" and "" for none."""
    with tempfile.TemporaryDirectory(prefix="external-") as name:
        folder, home = Path(name, "model"), Path(name, "home")
        folder.mkdir()
        home.mkdir()
        (home / "w.bin").write_bytes(OUTSIDE_BYTES)
        value, build = CARRIERS[carrier]
        entries = {"location": "w.bin"}
        if trick == CONTROL:
            (folder / "w.bin").write_bytes(value.raw_data)
        else:
            place, entries, _ = TRICKS[trick]
            place(folder)
        model = build(external(value, **entries))
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        child = os.fork()
        if not child:
            _run_child(folder / "m.onnx", home)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines = (home / "stderr").read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error[")]
    if status == 0 and not errors:
        return "", ""
    if status != 1 or len(errors) != 1:
        return f"exit code {status}", " ".join(lines)[-300:]
    return errors[0][len("error[") : errors[0].index("]")], errors[0].replace(name, "FOLDER")


def _run_child(model: Path, home: Path) -> None:
    """Run inspect in the forked process, from another folder than the model's; never return."""
    from onnxprune.cli import run

    os.chdir(home)
    os.dup2(os.open("stderr", os.O_WRONLY | os.O_CREAT), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os._exit(run(["inspect", str(model), "--json"]))


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the section of the page."""
    carriers = ", ".join(rows[0]["codes"])
    count = len(rows[0]["codes"])
    lines = [
        "## External data",
        "",
        f"Each trick with each of {count} carriers: {carriers}.",
        "",
        *markdown.head("location", "result per carrier", "error line of the initializer"),
    ]
    for row in rows:
        counts = Counter(code or "accepted" for code in row["codes"].values())
        result = ", ".join(f"{code}: {n} of {count}" for code, n in counts.most_common())
        if row["wrong"]:
            result += f"; wrong: {', '.join(row['wrong'])}"
        lines.append(markdown.line(row["trick"], result, markdown.cell(row["line"]) or "none"))
    return lines
