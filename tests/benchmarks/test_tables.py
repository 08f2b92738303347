"""The page of results: rows of two records in one table."""

import json
from pathlib import Path

import pytest
import tables


def row(psnr: float) -> dict[str, dict[str, float]]:
    return {"as it is": {"all": psnr, "few": psnr, "learned": psnr}, "found": {"few": psnr}}


def test_of_two_records_the_last_counts_and_the_best_network_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rival = {"rival": {"as it is": {"all": 40.0, "few": 40.0, "learned": 40.0}}}
    records = {"where_lost_parts": {"ours": row(1.0), "lost": row(2.0)} | rival, "where_lost": {"ours": row(3.0)} | rival}
    for name, figures in records.items():
        source = {"command": f"of {name}", "hardware": "", "data": "", "date": ""}
        (tmp_path / f"{name}.json").write_text(json.dumps(source | {"figures": figures}))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    lines = tables.block("where_lost").splitlines()

    assert lines[2:5] == [
        "| ours | 3.00 | 3.00 | 3.00 | 3.00 |",
        "| lost | 2.00 | 2.00 | 2.00 | 2.00 |",
        "| rival | 40.00 | 40.00 | 40.00 |  |",
    ]
    assert [line.split("`")[1] for line in lines if "`" in line] == ["of where_lost_parts", "of where_lost"]
