"""Hold what a check of a data set's files has found, and write counts and lists for its lines."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from ..errors import DataError, short

MOST = 50  # faults that are worth listing


@dataclass
class Report:
    """Hold what a check has found in an annotation file, or in folders of masks or of classes.

    Attributes:
        source: the file or the folder, with which every line begins.
        faults: what must not be trained or tested, a line each; the line names the record.
        skipped: how many records are left out, by what and why, in the plural, such as
            `boxes of zero area or thinner than a pixel`.
        odd: how many records are kept though they look wrong, likewise, such as
            `boxes beyond the edge of their image`.
        notes: what a person should know, though nothing is lost, a line each.
        images: how many there are.
        empty: how many of them have nothing to learn from, such as no box.
        examples: of what is skipped and was hardly meant to be, the file of the first, by what it
            is.
        per_class: boxes, pixels or images of each class, by its name, in the order of the labels.
        sizes: of the smallest and of the largest image (width, height); None where none is known.
    """

    source: str
    faults: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)
    images: int = 0
    empty: int = 0
    per_class: dict[str, int] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], tuple[int, int]] | None = None

    def add(self, faults: Iterable[str]) -> bool:
        """Add faults, `MOST` in all; tell whether there are any by now."""
        self.faults += islice(faults, MOST - len(self.faults))
        return bool(self.faults)

    def refuse(self) -> None:
        """Raise DataError with the first fault, if there is one."""
        if self.faults:
            others = len(self.faults) - 1
            more = f" (and {count(others, 'more such lines')}: hire-mlp data --check)"
            raise DataError(f"{self.source}{self.faults[0]}{more if others else ''}")

    def losses(self) -> str:
        """Count what is left out or looks wrong, by reason, for the end of a line of the log."""
        found = [("skipped ", self.skipped), ("", self.odd)]
        return "".join(
            f"; {before}{count(number, what)}"
            for before, counts in found
            for what, number in counts.items()
            if number
        )


def few(names: Iterable[object], most: int = 5) -> str:
    """Join the first few of some names, each cut to a line's length."""
    texts = [short(str(name)) for name in names]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")


def count(number: int, what: str) -> str:
    """Say how many there are of something: `count(1, "boxes of zero area")` is 1 box of zero area.

    Args:
        number: how many there are.
        what: the thing in the plural; its first word that ends in s is the noun.
    """
    if number == 1:
        what = re.sub(r"(box|class)es\b|(\w)s\b", r"\1\2", what, count=1)
    return f"{number} {what}"


def without(per_class: Mapping[str, int], what: str) -> Iterator[str]:
    """Yield a line that names the classes of which there is nothing, if there are any."""
    if empty := [name for name, number in per_class.items() if not number]:
        classes = f"class {empty[0]} has" if len(empty) == 1 else f"classes {few(empty)} have"
        number = f" ({len(empty)} of {len(per_class)} classes)" if empty[5:] else ""
        pairs = ((name, near(name, per_class)) for name in empty)
        alike = next((f"; is {name!r} a slip for {other!r}?" for name, other in pairs if other), "")
        yield f": {classes} no {what}{number}{alike}"


def near(name: str, names: Iterable[str]) -> str:
    """Return the one of some names that another may be a slip for; empty where none is near.

    Names that differ by a number alone, such as `class 1` and `class 2`, are no slips.
    """

    def plain(text: str) -> str:
        return text.strip().casefold()

    def unnumbered(text: str) -> str:
        return re.sub(r"\d", "", plain(text))

    others = {
        plain(one): one
        for one in names
        if one != name and (plain(one) == plain(name) or unnumbered(one) != unnumbered(name))
    }
    found = difflib.get_close_matches(plain(name), others, 1, 0.7)
    return others[found[0]] if found else ""


def listed(names: Iterable[object], what: str, before: str = "passed over: ") -> list[str]:
    """Return a line that counts some names and lists the first; none where there are no names.

    Args:
        names: such as `["a.jpg"]`.
        what: they are, in the plural, such as `images without mask`.
        before: with what the line begins.
    """
    names = list(names)
    return [f"{before}{count(len(names), what)}: {few(names)}"] if names else []
