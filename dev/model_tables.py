#!/usr/bin/env python
"""Write the tables of docs/recipes.md from the metafiles in configs/: `make tables`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/recipes.md"
# A table stands between a line that names its metafile and the next line that is a comment.
TABLE = re.compile(
    r"(<!-- (configs/metafile_\w+\.yml): [^\n]*-->\n)(?:\|[^\n]*\n)*(<!-- end -->\n)"
)
HEAD = """\
| config | params | paper | FLOPs | paper | published |
|---|---|---|---|---|---|
"""
# The figures that a table shows, in this order; a metafile may hold more.
METRICS = {
    "Top 1 Accuracy": "% top-1",
    "box AP": "box AP",
    "mask AP": "mask AP",
    "mIoU": "mIoU",
    "mIoU(ms)": "multi-scale",
}


def row(model: dict[str, Any]) -> str:
    """Write the row of one model."""
    figures = model["Metadata"]
    metrics = {key: value for r in model.get("Results", ()) for key, value in r["Metrics"].items()}
    published = [f"{metrics[key]} {name}" for key, name in METRICS.items() if key in metrics]
    if "Converted From" in model:
        published.append(f"[weights]({model['Converted From']['Weights']})")
    flops = figures["FLOPs"] / 1e9
    cells = (
        f"`{Path(model['Config']).name}`",
        f"{figures['Parameters'] / 1e6:.1f} M",
        figures.get("Published Parameters", "-"),
        f"{flops:.{1 if flops < 100 else 0}f} G",
        figures.get("Published FLOPs", "-"),
        ", ".join(published) or "-",
    )
    return f"| {' | '.join(map(str, cells))} |\n"


def with_tables(text: str) -> str:
    """Return the text with all its tables made anew."""

    def table(match: re.Match[str]) -> str:
        models = yaml.safe_load((ROOT / match[2]).read_text())["Models"]
        return f"{match[1]}{HEAD}{''.join(map(row, models))}{match[3]}"

    return TABLE.sub(table, text)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
