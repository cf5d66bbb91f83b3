"""How did all the ratios come out, and which goals were missed: as a table, and to be seen at a glance?

Written after a run with `--report`, from the `extra_info` that `duel.py` and `rig.py` leave behind:
`report.md` and `report.svg`. The plot is made by hand, as no library for a few bars is worth a dependency.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

_HERE = Path(__file__).parent
_GOAL = re.compile(r"at (most|least) (\d+(?:\.\d+)?) \((time|rate)\)")

# The plot, in pixels: names at the left, bars, figures at the right.
_NAMES, _BARS, _FIGURES = 470, 400, 270
_HEAD, _ROW, _FOOT = 46, 22, 30
_COLOURS = {"reached": "#2f7d4f", "missed": "#b5482a", "": "#7a8591"}


@dataclass(frozen=True)
class Row:
    """What one benchmark came to."""

    what: str
    ratio: float
    least: float
    greatest: float
    goal: str
    ours_ms: float
    theirs_ms: float

    @property
    def wanted(self) -> float | None:
        """The figure of the goal, if it has one."""
        goal = parse(self.goal)
        return None if goal is None else goal[1]

    @property
    def verdict(self) -> str:
        """`reached`, `missed`, or nothing where nothing was aimed at."""
        goal = parse(self.goal)
        if goal is None:
            return ""
        is_least, wanted = goal
        is_reached = self.ratio >= wanted if is_least else self.ratio <= wanted
        return "reached" if is_reached else "missed"


@dataclass(frozen=True)
class Figure:
    """What one benchmark came to that stands beside nothing else."""

    what: str
    figure: float
    least: float
    greatest: float
    unit: str
    goal: float | None
    is_most: bool

    @property
    def aim(self) -> str:
        """The goal in words."""
        if self.goal is None:
            return "for comparison"
        return f"at {'most' if self.is_most else 'least'} {self.goal:,.0f}"

    @property
    def verdict(self) -> str:
        """As that of a ratio."""
        if self.goal is None:
            return ""
        is_reached = self.figure <= self.goal if self.is_most else self.figure >= self.goal
        return "reached" if is_reached else "missed"


def parse(goal: str) -> tuple[bool, float] | None:
    """Read "at least 30 (rate)": whether it is a least, and the figure; None where it is "for comparison"."""
    found = _GOAL.fullmatch(goal)
    return None if found is None else (found[1] == "least", float(found[2]))


def rows_of(infos: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return a row for each `extra_info` that has a ratio."""
    return [
        Row(
            what=info["what"],
            ratio=info["ratio"],
            least=info["spread"][0],
            greatest=info["spread"][1],
            goal=info["goal"],
            ours_ms=info["ours_ms"],
            theirs_ms=info["theirs_ms"],
        )
        for info in infos
        if "ratio" in info
    ]


def figures_of(infos: Iterable[Mapping[str, Any]]) -> list[Figure]:
    """Return one for each `extra_info` that has a figure."""
    return [
        Figure(
            info["what"],
            info["figure"],
            *info["spread"],
            info["unit"],
            info["goal"],
            info.get("is_most", False),
        )
        for info in infos
        if "figure" in info
    ]


def write(infos: Iterable[Mapping[str, Any]], folder: Path = _HERE) -> list[Path]:
    """Write both files into `folder`, in place of those of the run before; return where they are."""
    infos = list(infos)
    rows = rows_of(infos)
    table, plot = folder / "report.md", folder / "report.svg"
    text = markdown(rows, datetime.now(UTC).date()) + figures_in_markdown(figures_of(infos))
    table.write_text(text, encoding="utf-8")
    plot.write_text(svg(rows), encoding="utf-8")
    return [table, plot]


def markdown(rows: Sequence[Row], day: date) -> str:
    """Return the table, with what it was made on."""
    missed = sum(row.verdict == "missed" for row in rows)
    aimed = sum(row.verdict != "" for row in rows)
    lines = [
        "# What the last run of the benchmarks came to",
        "",
        f"On {day.isoformat()}, Python {platform.python_version()}, {_cores()} cores: {len(rows)} ratios,"
        f" {aimed} with a goal, of which {missed} missed. [How to read them](README.md#how-to-read-them).",
        "",
        "![Each ratio as a bar, its goal as a tick](report.svg)",
        "",
        "| What | Ratio | Least and greatest | Goal | | Ours, ms | Theirs, ms |",
        "| --- | ---: | ---: | --- | --- | ---: | ---: |",
    ]
    lines += [
        f"| {_in_a_cell(row.what)} | {row.ratio:.2f} | {row.least:.2f} to {row.greatest:.2f}"
        f" | {row.goal} | {_loud(row.verdict)} | {row.ours_ms:,.2f} | {row.theirs_ms:,.2f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def figures_in_markdown(figures: Sequence[Figure]) -> str:
    """Return the table of what stands beside nothing else; nothing where there is none."""
    if not figures:
        return ""
    lines = [
        "",
        "## Figures",
        "",
        "| What | | | Least and greatest | Goal | |",
        "| --- | ---: | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {_in_a_cell(row.what)} | {row.figure:,.1f} | {row.unit} | {row.least:,.1f} to"
        f" {row.greatest:,.1f} | {row.aim} | {_loud(row.verdict)} |"
        for row in figures
    ]
    return "\n".join(lines) + "\n"


def _in_a_cell(text: str) -> str:
    return text.replace("|", r"\|")


def _loud(verdict: str) -> str:
    return f"**{verdict}**" if verdict == "missed" else verdict


def svg(rows: Sequence[Row]) -> str:
    """Return the plot: a bar from 1 to each ratio on a logarithmic axis, and a tick where its goal is."""
    low, high = _decades(rows)

    def x(value: float) -> float:
        share = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return round(_NAMES + share * _BARS, 1)

    width, height = _NAMES + _BARS + _FIGURES, _HEAD + _ROW * len(rows) + _FOOT
    bottom = height - _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(10, 20, "Ratios ours : theirs (bars, thin line: least to greatest) and their goals (ticks)"),
    ]
    for power in range(low, high + 1):
        at = x(10.0**power)
        shade = "#444" if power == 0 else "#ddd"
        parts.append(f'<line x1="{at}" y1="{_HEAD - 6}" x2="{at}" y2="{bottom}" stroke="{shade}"/>')
        parts.append(_text(at, bottom + 18, f"{10.0**power:g}", anchor="middle"))
    for number, row in enumerate(rows):
        parts += _bar(row, _HEAD + number * _ROW, x)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(row: Row, top: int, x: Any) -> list[str]:
    left, right = sorted((x(1.0), x(row.ratio)))
    middle, colour = top + 8, _COLOURS[row.verdict]
    said = f"{row.ratio:.2f} - {row.goal}" + (f": {row.verdict}" if row.verdict else "")
    parts = [
        _text(_NAMES - 10, top + 12, row.what, anchor="end"),
        f'<rect x="{left}" y="{top}" width="{max(1.0, round(right - left, 1))}" height="16" fill="{colour}">'
        f"<title>{escape(f'{row.what}: {said}')}</title></rect>",
        f'<line x1="{x(row.least)}" y1="{middle}" x2="{x(row.greatest)}" y2="{middle}" stroke="#111"/>',
        _text(_NAMES + _BARS + 10, top + 12, said),
    ]
    if row.wanted is not None:
        at = x(row.wanted)
        tick = f'x1="{at}" y1="{top - 2}" x2="{at}" y2="{top + 18}"'
        parts.append(f'<line {tick} stroke="#111" stroke-width="3"/>')
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _decades(rows: Sequence[Row]) -> tuple[int, int]:
    """Return the powers of ten between which everything lies, 1 always among them."""
    values = [1.0]
    for row in rows:
        values += [row.least, row.greatest, row.wanted or 1.0]
    logs = [math.log10(value) for value in values if value > 0]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    return min(low, -1), max(high, 1)


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
