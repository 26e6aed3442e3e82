"""Run docs/tutorial.md in an empty folder, and write what it printed and drew into a notebook.

    make tutorial

docs/tutorial.md is the source; docs/tutorial.ipynb is made of it, with the outputs.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode, write

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "docs/tutorial.md"
TARGET = ROOT / "docs/tutorial.ipynb"
# What a log says of the time and the place of a run: it would change the file at every run.
TIMES = re.compile(r"^\d\d/\d\d \d\d:\d\d:\d\d - ", re.M)
COLOURS = re.compile(r"\x1b\[[\d;?]*[A-Za-z]")
MOST = 60  # lines of an output that are kept


def read_notebook(text: str) -> NotebookNode:
    """Make a notebook of the page; its cells are numbered, so that equal pages give equal files."""
    notebook = jupytext.reads(text, fmt="md")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    return notebook


def run_notebook(notebook: NotebookNode, folder: Path) -> None:
    """Run the cells in a folder; a cell that fails raises nbclient's CellExecutionError."""
    # The commands of this environment, and one thread of OpenCV and the like per core.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ.update(PATH=path, PYTHONPATH=str(ROOT))
    client = NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        coalesce_streams=True,
        resources=dict(metadata=dict(path=folder)),
    )
    client.execute()


def shorten(notebook: NotebookNode, folder: Path) -> None:
    """Leave out of the outputs what differs from run to run, and the middle of long logs."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        # What the hosts and torch say about themselves goes to the other stream.
        outputs = [one for one in cell.get("outputs", ()) if one.get("name") != "stderr"]
        if "outputs" in cell:
            cell.outputs = outputs
        for output in outputs:
            if "text" in output:
                text = TIMES.sub("", COLOURS.sub("", output.text))
                lines = text.replace(f"{folder}/", "").splitlines()
                if len(lines) > MOST:
                    left_out = f"[... {len(lines) - MOST} lines ...]"
                    lines = [*lines[: MOST // 6], left_out, *lines[-5 * MOST // 6 :]]
                output.text = "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=TARGET, help="notebook to write")
    args = parser.parse_args()
    notebook = read_notebook(SOURCE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        run_notebook(notebook, Path(folder))
        shorten(notebook, Path(folder))
    write(notebook, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
