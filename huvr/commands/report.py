"""``huvr report``: the records of many probes, joined into tables and plots of accuracy against bytes."""

from __future__ import annotations

import html
import math
from pathlib import Path

from huvr.errors import HuvrError
from huvr.files import whole
from huvr.records import Section, found, grouped, rows_of

HEADLINE = 4  # its column
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2 { font-weight: 600; line-height: 1.2; } h2 { margin-top: 2.5rem; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom-color: #888; } :is(th, td):nth-child(-n+3) { text-align: left; }
td.best { font-weight: 700; } p.data, footer { color: #666; font-size: 14px; }
"""


def report(folders: list[Path], *, out: Path) -> None:
    """Join the records that ``huvr probe`` left into one page of tables and plots, and the tables as Markdown.

    Args:
        folders: run folders, or folders that hold some anywhere below them.
        out: the HTML page; it needs no other file. The Markdown lies beside it, OUT with the suffix .md.
    """
    if out.suffix != ".html":
        raise HuvrError(f"out {out}: expected a file that ends in .html")
    sections = grouped(row for folder in folders for path in found(folder) for row in rows_of(path))
    pages = {out: page(sections), out.with_suffix(".md"): markdown(sections)}
    for path, text in pages.items():
        with whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    rows = sum(len(section.rows) for section in sections)
    print(f"{rows} rows of {len(sections)} tables in {out} and {out.with_suffix('.md').name}")


def cells(section: Section) -> tuple[list[str], list[tuple[list[str], bool]]]:
    """Head and lines of a table as text; a line is marked where its headline is the best."""
    other = ["options"] if any(row.options for row in section.rows) else []
    head = ["encoder", "tokens", "stored", "bytes / image", *section.metrics, "seconds", *other]
    best = section.best()
    known = {name: [abs(row.metrics.get(name, 0)) for row in section.rows] for name in section.metrics}
    largest = {name: max(filter(math.isfinite, values), default=0) for name, values in known.items()}
    digits = {name: 2 if largest[name] >= 10 else 4 for name in section.metrics}
    lines = []
    for row in section.rows:
        size = "" if row.bytes_per_image is None else f"{row.bytes_per_image:,.0f}"
        values = [number(row.metrics.get(name), digits[name]) for name in section.metrics]
        line = [row.encoder, row.tokens, row.stored, size, *values, number(row.seconds, 0), *([row.told] if other else [])]
        lines.append((line, row.metrics.get(row.headline) == best))
    return head, lines


def number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def markdown(sections: list[Section]) -> str:
    parts = ["# Frozen encoders", ""]
    for section in sections:
        head, lines = cells(section)
        parts += [f"## {section.task}", "", f"{section.data}. {section.title}.", ""]
        parts += ["| " + " | ".join(head) + " |", "| --- | --- | --- |" + " --: |" * (len(head) - 3)]
        for line, best in lines:
            marked = [
                f"**{cell}**" if best and place == HEADLINE else cell.replace("|", "\\|") for place, cell in enumerate(line)
            ]
            parts.append("| " + " | ".join(marked) + " |")
        parts.append("")
    return "\n".join(parts)


def page(sections: list[Section]) -> str:
    """The HTML page; plots are drawn into it."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Frozen encoders</title><style>{STYLE}</style><h1>Frozen encoders</h1>"
        "<p>What the tokens of frozen encoders are good for, and what they cost: bytes of all tokens of one image as they would "
        "be stored, the global one included. Every metric is that of the stored tokens.</p>"
        f"{''.join(map(article, sections))}<footer><p>Written by huvr report. Filled points: fp16; hollow: int8.</p></footer>"
        "</html>\n"
    )


def article(section: Section) -> str:
    """Plot and table of a section."""
    head, lines = cells(section)
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    rows = []
    for line, best in lines:
        marks = [" class=best" if best and place == HEADLINE else "" for place in range(len(line))]
        rows.append("".join(f"<td{mark}>{html.escape(cell)}</td>" for cell, mark in zip(line, marks, strict=True)))
    return (
        f"<h2>{html.escape(section.task)}</h2><p class=data>{html.escape(section.data)}</p>{plot(section)}"
        f"<div class=wide><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table></div>"
    )


def plot(section: Section) -> str:
    """The headline against bytes, where both are known."""
    from huvr.plots import curves

    series: dict[str, list[tuple[float, float, str]]] = {}
    for row in section.rows:
        if row.bytes_per_image and math.isfinite(row.metrics.get(row.headline, math.nan)):
            point = (row.bytes_per_image, row.metrics[row.headline], row.stored)
            series.setdefault(row.series, []).append(point)
    return f"<figure>{curves(series, 'bytes per image', section.title)}</figure>" if series else ""
