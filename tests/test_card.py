"""The card that lies beside every set of data."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.data.card import FILES, read_card, write_card


def test_a_line_a_fact(tmp_path: Path) -> None:
    card = {
        "rows": 12345,
        "share": 0.123456,
        "longest": None,
        "lengths": {"chosen": {"mean": 2.0}, "rejected": {}},
        "drop": [],
        "bad rows": list(range(10)),
        "said": "a | b\nc",
        "whole": True,
    }
    write_card(tmp_path, card, "Some pairs")
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    assert read_card(tmp_path) == card
    assert list(read_card(tmp_path)) == list(card), "in its own order"
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == (
        "# Some pairs\n\n| | |\n| --- | --- |\n"
        "| rows | 12,345 |\n"
        "| share | 0.1235 |\n"
        "| longest | not known |\n"
        "| lengths, chosen, mean | 2 |\n"
        "| drop | none |\n"
        "| bad rows | 0, 1, 2, 3, 4, 5, 6, 7, and 2 more |\n"
        "| said | a \\| b c |\n"
        "| whole | True |\n"
    )


def test_a_page_of_its_own(tmp_path: Path) -> None:
    write_card(tmp_path, {"rows": 1}, "Some pairs", "# Other\n")
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == "# Other\n"


def test_nan_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_card(tmp_path, {"share": float("nan")}, "Some pairs")
    assert list(tmp_path.iterdir()) == []
    assert read_card(tmp_path) == {}
