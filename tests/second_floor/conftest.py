"""What several tests of this floor use."""

from __future__ import annotations

import pytest

from hire_mlp_mm.engine.guarded import base


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """The lines that guarded data sets write into the log."""
    lines: list[str] = []
    monkeypatch.setattr(base, "print_log", lambda line, **_: lines.append(line))
    return lines
