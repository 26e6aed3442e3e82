"""Hold what a check of a data set's files has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from ..errors import DataError

MOST = 50  # faults that are worth listing


@dataclass
class Report:
    """Hold what a check has found in an annotation file, or in folders of masks or of classes.

    Attributes:
        source: the file or the folder, with which every line begins.
        faults: what must not be trained or tested, a line each; the line names the record.
        skipped: how many records are left out, by what and why, such as
            `boxes of zero area or thinner than a pixel`.
        odd: how many records are kept though they look wrong, by what and why, such as
            `boxes reach beyond their image`.
        notes: what a person should know, though nothing is lost, a line each.
        images: how many there are.
        empty: how many of them have nothing to learn from, such as no box.
        per_class: boxes, pixels or images of each class, by its name, in the order of the labels.
    """

    source: str
    faults: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    images: int = 0
    empty: int = 0
    per_class: dict[str, int] = field(default_factory=dict)

    def add(self, faults: Iterable[str]) -> bool:
        """Add faults, `MOST` in all; tell whether there are any by now."""
        self.faults += islice(faults, MOST - len(self.faults))
        return bool(self.faults)

    def refuse(self) -> None:
        """Raise DataError with the first fault, if there is one."""
        if self.faults:
            others = len(self.faults) - 1
            more = f" (and {others} more such lines: hire-mlp data --check)" if others else ""
            raise DataError(f"{self.source}{self.faults[0]}{more}")

    def losses(self) -> str:
        """Count what is left out or looks wrong, by reason, for the end of a line of the log."""
        skipped = [f"skipped {count} {what}" for what, count in self.skipped.items() if count]
        odd = [f"{count} {what}" for what, count in self.odd.items() if count]
        return "".join(f"; {part}" for part in [*skipped, *odd])


def few(names: Iterable[str]) -> str:
    """Join the first five of some names."""
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
