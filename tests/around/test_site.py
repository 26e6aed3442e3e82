"""Is the site whole: every page in the menu, every link alive, nothing asked of anybody else?"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

import hire_mlp_mm
from hire_mlp_mm import configure, deploy, engine, explain, prediction
from tests.conftest import ROOT

DOCS = ROOT / "docs"
API = re.findall(r"^::: (\S+)", (DOCS / "api.md").read_text(), re.M)


@pytest.mark.timeout(600)
def test_the_site_is_built_strictly(tmp_path):
    """A dead link or anchor, a page that no menu has, or an unknown name of the API would stop it.

    The rest is what MkDocs does not see: a table that stayed text, and files of other servers.
    """
    pytest.importorskip("mkdocs", reason="the site is built in the main environment alone")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    quiet = dict(os.environ, NO_MKDOCS_2_WARNING="1")
    built = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    pages = {page.name: page.read_text() for page in tmp_path.glob("*.html")}
    assert {f"{page.stem}.html" for page in DOCS.glob("*.md")} < set(pages)
    assert {"index.html", "contributing.html", "changelog.html"} < set(pages)
    assert pages["performance.html"].count("<table") >= 5
    for name, text in pages.items():
        assert "{.whole}" not in text, name
        loaded = re.findall(r"<(?:link|script|img|iframe)\b[^>]*?(?:src|href)=\"?(\S+)", text)
        assert not [one for one in loaded if re.match("(https?:)?//", one)], name


@pytest.mark.parametrize("module", [hire_mlp_mm, configure, deploy, engine, explain, prediction])
def test_the_api_has_every_public_name(module):
    """A module is there by a name in it, and what two modules offer by its name in one of them."""
    names = [name for name in module.__all__ if name != "__version__"]
    absent = [
        name
        for name in names
        if not any(
            one.endswith(f".{name}") or one.startswith(f"{module.__name__}.{name}.") for one in API
        )
    ]
    assert not absent
    assert len(set(API)) == len(API)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_the_figures_are_what_the_script_draws(tmp_path, monkeypatch):
    """Byte by byte, by the matplotlib that drew those in docs/images."""
    import draw_how_it_works as script

    kept = script.FOLDER
    monkeypatch.setattr(script, "FOLDER", tmp_path)
    script.draw_all()
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == 5
    if f"Matplotlib v{matplotlib.__version__}," not in (kept / drawn[0].name).read_text():
        pytest.skip("another matplotlib drew the figures")
    for figure in drawn:
        assert figure.read_text() == (kept / figure.name).read_text(), figure.name
        assert f"images/{figure.name}" in Path(DOCS / "how_it_works.md").read_text()
