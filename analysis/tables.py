"""Rows of cells as text, Markdown or LaTeX: what the frontier, claims and replay tables share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

Rows = Sequence[Sequence[str]]
_ESCAPES = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})


def text(header: Sequence[str], rows: Rows) -> str:
    """Aligned columns."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(r, widths, strict=True)).rstrip() for r in [header, *rows]]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def markdown(header: Sequence[str], rows: Rows) -> str:
    """A GitHub table."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in r) + " |" for r in [header, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def latex(header: Sequence[str], rows: Rows) -> str:
    """A `tabular` with booktabs rules."""

    def line(row: Sequence[str]) -> str:
        return " & ".join(cell.translate(_ESCAPES).replace("±", r"$\pm$") for cell in row) + r" \\"

    body = [line(header), r"\midrule", *map(line, rows)]
    columns = "l" * len(header)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"])


FORMATS: dict[str, Callable[[Sequence[str], Rows], str]] = {"text": text, "markdown": markdown, "latex": latex}


def of_frame(frame: pd.DataFrame, format: str = "text") -> str:
    """A data frame without its index; floats with four significant digits, what is missing blank."""

    def cell(value: object) -> str:
        if isinstance(value, float):
            return "" if np.isnan(value) else f"{value:.4g}"
        return "" if value is None else str(value)

    rows = [[cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return render([str(name) for name in frame.columns], rows, format)


def render(header: Sequence[str], rows: Rows, format: str) -> str:
    """The table in one of FORMATS."""
    if format not in FORMATS:
        raise ValueError(f"no table format {format!r}; there are {', '.join(FORMATS)}")
    return FORMATS[format](header, rows)
