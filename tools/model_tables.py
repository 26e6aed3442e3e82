#!/usr/bin/env python
"""Write README.md's tables of recipes from the metafiles in configs/.

python tools/model_tables.py            # write
python tools/model_tables.py --check    # exit with 1 if the tables are not the metafiles'
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
# A table stands between a line that names its metafile and the next line that is a comment.
TABLE = re.compile(
    r"(<!-- (configs/metafile_\w+\.yml): [^\n]*-->\n)(?:\|[^\n]*\n)*(<!-- end -->\n)"
)
COLUMNS = ("config", "params", "paper", "FLOPs", "paper", "published")
# The figures that a table shows, in this order; a metafile may hold more.
METRICS = {
    "Top 1 Accuracy": "% top-1",
    "box AP": "box AP",
    "mask AP": "mask AP",
    "mIoU": "mIoU",
    "mIoU(ms)": "multi-scale",
}


def row(model: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one model."""
    figures = model["Metadata"]
    metrics: dict[str, float] = {}
    for result in model.get("Results", ()):
        metrics |= result["Metrics"]
    flops = figures["FLOPs"] / 1e9
    published = [f"{metrics[key]} {name}" for key, name in METRICS.items() if key in metrics]
    weights = model.get("Converted From", {}).get("Weights")
    if weights:
        published.append(f"[weights]({weights})")
    return (
        f"`{Path(model['Config']).name}`",
        f"{figures['Parameters'] / 1e6:.1f} M",
        str(figures.get("Published Parameters", "-")),
        f"{flops:.1f} G" if flops < 100 else f"{flops:.0f} G",
        str(figures.get("Published FLOPs", "-")),
        ", ".join(published) or "-",
    )


def table(metafile: Path) -> str:
    """A metafile's models as a Markdown table."""
    models = yaml.safe_load(metafile.read_text())["Models"]
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(row, models)]
    return "".join(f"| {' | '.join(cells)} |\n".replace(" --- ", "---") for cells in rows)


def with_tables(text: str) -> str:
    """The text with all its tables made anew."""
    return TABLE.sub(lambda match: match[1] + table(ROOT / match[2]) + match[3], text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write README.md's tables from the metafiles.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if they differ")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    before = readme.read_text()
    after = with_tables(before)
    if args.check and before != after:
        print("README.md's tables are not the metafiles'; `make tables` writes them")
    elif before != after:
        readme.write_text(after)
    return int(args.check and before != after)


if __name__ == "__main__":
    sys.exit(main())
