"""Record of a proof: JSON in docs/proved.json, and its table in docs/proved.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proving.check import Outcome
from proving.evaluate import TOLERANCE

Json = dict[str, Any]
REASONS = 3  # frozen axes that the table names per row


def row_of(outcome: Outcome, bits: bool, limit: int) -> Json:
    """Return what a run keeps about a row.

    Parameters
    ----------
    outcome
        Counts.
    bits
        Whether equality to the bit was demanded.
    limit
        Most worlds per space.
    """
    faults = [fault.partition("<")[0].strip() for fault in outcome.faults]
    return {
        "worlds": outcome.worlds,
        "combinations": outcome.choices,
        "limit": limit,
        "cuts": outcome.plans,
        "equal_to_the_bit": outcome.exact,
        "demanded": "bits" if bits else "tolerance",
        "worlds_with_sampled_cuts": outcome.sampled,
        "worlds_without_effect": outcome.vacuous,
        "worlds_frozen": outcome.frozen_worlds,
        "frozen": dict(sorted(outcome.frozen.items(), key=lambda item: (-item[1], item[0]))),
        "evaluators": dict(sorted(outcome.runtimes.items())),
        "not_evaluated": dict(sorted(outcome.unevaluated.items())),
        "faults": faults,
        "seconds": round(outcome.seconds, 1),
    }


def tables(record: Json, without: Mapping[str, str]) -> str:
    """Return the section of docs/proved.md.

    Parameters
    ----------
    record
        Content of docs/proved.json.
    without
        Rows that have no worlds, with the reason.
    """
    rows: dict[str, Json] = record["rows"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    worlds = sum(row["worlds"] for row in rows.values())
    cuts = sum(row["cuts"] for row in rows.values())
    exact = sum(row["equal_to_the_bit"] for row in rows.values())
    faults = sum(len(row["faults"]) for row in rows.values())
    complete = sum(row["combinations"] is None for row in rows.values())
    limits = sorted({row["limit"] for row in rows.values() if row["combinations"] is not None})
    head = (
        f"{len(rows)} operators, {worlds:,} worlds, {cuts:,} cuts: {exact:,} equal to the bit, "
        f"{cuts - exact - faults:,} within the\ntolerance of {TOLERANCE['reference']:g} "
        f"({TOLERANCE['onnxruntime']:g} with onnxruntime), {faults} wrong. {complete} operators "
        f"are complete; of the\nothers, {' or '.join(map(str, limits))} worlds per family of "
        f"forms are drawn. {record['seconds'] / 60:.0f} minutes of one core, with\n{versions}."
    )
    lines = [
        "| operator | worlds | cuts | equal to the bit | evaluator | result | frozen axes |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [_line(op, row) for op, row in sorted(rows.items())]
    lines += [f"| {op} | | | | | no worlds: {why} | |" for op, why in sorted(without.items())]
    return f"{head}\n\n" + "\n".join(lines)


def _line(op: str, row: Json) -> str:
    """Return the line of a row."""
    worlds = f"{row['worlds']:,}"
    if row["combinations"] is not None:
        worlds += " (drawn)"
    evaluator = ", ".join(row["evaluators"])
    cells = [op, worlds, f"{row['cuts']:,}", f"{row['equal_to_the_bit']:,}", evaluator]
    return f"| {' | '.join([*cells, result_of(row), _frozen(row)])} |"


def result_of(row: Json) -> str:
    """Return the verdict on a row."""
    if row["faults"]:
        return f"{len(row['faults'])} wrong"
    if not row["cuts"]:
        return "frozen" if row["worlds"] else "not evaluated"
    return "equal to the bit" if row["demanded"] == "bits" else "within the tolerance"


def _frozen(row: Json) -> str:
    """Return the most frequent reasons for frozen axes, with the number of worlds."""
    reasons = [f"{why} ({count:,})" for why, count in list(row["frozen"].items())[:REASONS]]
    more = len(row["frozen"]) - REASONS
    if more > 0:
        reasons.append("1 other reason" if more == 1 else f"{more} other reasons")
    return "; ".join(reasons).replace("|", "\\|")
