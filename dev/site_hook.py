"""Put README.md and its neighbours into the site; MkDocs calls the functions by their names.

These files stand at the top of the repository, so their links, and those that lead to them, say
other paths there than in the site.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PLACES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "LICENSE": "LICENSE",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files at the top of the repository to those of docs/."""
    for source, place in PLACES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of the repository into those of the site."""
    is_at_top = page.file.src_uri in PLACES.values()
    for source, place in PLACES.items():
        before = source if is_at_top else f"../{source}"
        markdown = markdown.replace(f"]({before}", f"]({place}")
    if is_at_top:
        markdown = markdown.replace("](docs/", "](")
    return re.sub(r"^\|(?![|: -]*$).*$", keep_short_cells_whole, markdown, flags=re.M)


def keep_short_cells_whole(row: re.Match[str]) -> str:
    """Mark the short cells of a table's row, for the style to keep each of them on one line."""
    cells = row[0].split("|")
    return "|".join(
        f"{cell}{{.whole}} " if 2 < len(cell) <= 24 and "[" not in cell else cell for cell in cells
    )
