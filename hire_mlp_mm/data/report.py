"""Hold what a check of a data set's files has found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..errors import DataError


@dataclass
class Report:
    """Hold what a check has found in an annotation file, or in folders of masks or of classes.

    Attributes:
        source: the file or the folder, with which every line begins.
        faults: what must not be trained or tested, a line each; the line names the record.
        skipped: how many records are left out, by what and why, such as
            `boxes of zero area or thinner than a pixel`.
        notes: what a person should know, though nothing is lost, a line each.
        images: how many there are.
        empty: how many of them have nothing to learn from, such as no box.
        per_class: boxes, pixels or images of each class, by its name, in the order of the labels.
    """

    source: str
    faults: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    images: int = 0
    empty: int = 0
    per_class: dict[str, int] = field(default_factory=dict)

    def refuse(self) -> None:
        """Raise DataError with the first fault, if there is one."""
        if self.faults:
            others = len(self.faults) - 1
            more = f" (and {others} more such lines: hire-mlp data --check)" if others else ""
            raise DataError(f"{self.source}{self.faults[0]}{more}")

    def losses(self) -> str:
        """Count what is left out, by reason, for the end of a line of the log."""
        return "".join(f"; skipped {count} {what}" for what, count in self.skipped.items())
