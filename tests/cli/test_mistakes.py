"""Typical mistakes are answered by one sentence with the way out, as docs/mistakes.md says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from mistakes import HEAD, PAGE, SECTIONS, Mistake, answer, in_folder, page_row, sentence

MISTAKES = [mistake for section in SECTIONS.values() for mistake in section]


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[None]:
    pytest.importorskip("PIL.Image")
    with in_folder():
        yield


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.command)
def test_mistake_is_answered_by_one_sentence(mistake: Mistake, page: str) -> None:
    code, text = answer(mistake)
    said = sentence(mistake, text)
    assert (code, mistake.says in said) == (mistake.code, True), text
    assert "error[internal]" not in text and "Traceback" not in text
    assert said and len(said) < 500
    # python tests/cli/mistakes.py --write
    assert page_row(mistake, text) in page


def test_page_holds_all_mistakes_and_nothing_else(page: str) -> None:
    assert page.startswith(HEAD)
    assert len(MISTAKES) >= 80 and len({m.command for m in MISTAKES}) == len(MISTAKES)
    assert page.count("\n| `") == len(MISTAKES)
