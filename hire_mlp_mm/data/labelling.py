"""Decide what the values of masks mean: the classes and their order, and what is not learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .class_names import ClassNames, read_names
from .layout import Hints
from .mask_files import IGNORED, Scan, code_of, colour_of
from .palette import Colour
from .report import count, few
from .tree import Tree

NO_CLASS = frozenset(("void", "ignore", "ignored", "unlabeled", "unlabelled", "unlabel"))


@dataclass
class Meaning:
    """Say what the values of masks mean; the fields are those of `Layout`."""

    classes: list[str]
    palette: list[Colour] | None = None
    reduce_zero_label: bool = False
    ignore_index: int = IGNORED
    mask_table: dict[Colour, int] | None = None


def understand(tree: Tree, scan: Scan, hints: Hints, notes: list[str]) -> Meaning:
    """Decide what the values of masks mean.

    Args:
        tree: where a file may name the classes.
        scan: the values of all masks.
        hints: may name the classes, and a value to ignore.
        notes: get a line for what was decided.

    Raises:
        UserError: if the classes have no names, or a value has no class.
    """
    table = read_names(tree)
    colours = table.colours if table else None
    notes += [f"classes from {table.file}"] if table else []
    if table and colours:
        if not scan.coloured:
            scan = scan.as_colours(set(map(code_of, colours)))
        if scan.coloured:
            return by_colours(tree.root, scan, table, colours, hints, notes)
        if scan.palette and hints.classes is None:
            check_palette(tree.root, scan.palette, table, colours)
    was_coloured = scan.coloured
    if was_coloured:
        scan = as_greys(tree.root, scan)
        notes.append("masks are RGB of equal red, green and blue, taken as labels")
    meaning = Labelling(tree.root, scan, hints, notes).decide(table)
    if was_coloured and meaning.mask_table is None:
        meaning.mask_table = table_of({value: value for value in [*scan.pixels, IGNORED]})
    if table and colours and meaning.classes == table.names:
        meaning.palette = colours
    elif scan.palette and meaning.mask_table is None:
        first = int(meaning.reduce_zero_label)
        palette = scan.palette[first : first + len(meaning.classes)]
        meaning.palette = palette if len(palette) == len(meaning.classes) else None
    return meaning


def table_of(labels: Mapping[int, int]) -> dict[Colour, int]:
    """Return the table that has masks written anew, of the label of each value."""
    return {(value, value, value): label for value, label in labels.items()}


def check_number(names: Sequence[str]) -> None:
    """Raise UserError where there is nothing to tell one class from."""
    if len(names) < 2:
        raise UserError(
            f"one class ({few(names)}) is nothing to tell from another; name the background, too: "
            f"--classes background,{names[0] if names else 'thing'}"
        )


# Colours -----------------------------------------------------------------------------------------


def by_colours(
    root: Path, scan: Scan, table: ClassNames, colours: list[Colour], hints: Hints, notes: list[str]
) -> Meaning:
    """Decide by a table of colours."""
    if unknown := scan.pixels.keys() - set(map(code_of, colours)):
        most = max(unknown, key=lambda value: scan.pixels[value])
        others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{root}: the colour {colour_of(most)}{others} is {scan.share(most)} and not in "
            f"{table.file}; add a line for it, such as 'void'"
        )
    if hints.ignore is not None:
        raise UserError(
            "--ignore is for masks of labels, and these have colours: call a class 'void' in "
            f"{root / table.file}"
        )
    names = [name for name in dict.fromkeys(table.names) if name.lower() not in NO_CLASS]
    if wrong := [name for name in hints.classes or () if name not in names]:
        raise UserError(f"--classes has {few(wrong)}; {table.file} has {few(names, 20)}")
    names = hints.classes or names
    if left := [name for name in dict.fromkeys(table.names) if name not in names]:
        notes.append(f"not learnt (label {IGNORED}): {few(left, 20)}")
    check_number(names)
    notes.append(f"masks have colours, which are written as labels of {len(names)} classes")
    labels = {name: label for label, name in enumerate(names)}
    written = {c: labels.get(n, IGNORED) for c, n in zip(colours, table.names, strict=True)}
    palette = [colours[table.names.index(name)] for name in names]
    return Meaning(names, palette, mask_table=written)


def check_palette(
    root: Path, palette: list[Colour], table: ClassNames, colours: list[Colour]
) -> None:
    """Raise UserError where the palette of masks and a table give a colour to two classes."""
    for value, (mine, other) in enumerate(zip(palette, colours, strict=False)):
        if mine != other and mine in colours:
            raise UserError(
                f"{root}: masks have the value {value} for the colour {mine}, which is number "
                f"{colours.index(mine)} of {table.file}; put its lines into the palette's order, "
                "or save masks as RGB"
            )


def as_greys(root: Path, scan: Scan) -> Scan:
    """Return the values of masks whose colours are all grey."""
    colours = sorted(map(colour_of, scan.pixels))
    if any(len(set(colour)) > 1 for colour in colours):
        raise UserError(
            f"{root}: masks have {count(len(colours), 'colours')} ({few(colours, 4)}) and "
            "nothing says which is which class; write class_dict.csv with lines 'name,r,g,b'"
        )
    return scan.renamed({code: code & 255 for code in scan.pixels})


# Values ------------------------------------------------------------------------------------------


@dataclass
class Labelling:
    """Decide by the values of masks, with the names of a file or of a person.

    Attributes:
        root: the data set's folder, for messages.
        scan: the values of all masks.
        hints: may name the classes, and a value to ignore.
        notes: get a line for what was decided.
    """

    root: Path
    scan: Scan
    hints: Hints
    notes: list[str]

    def __post_init__(self) -> None:
        self.ignored = {v for v in (IGNORED, self.hints.ignore) if v is not None}
        self.values = sorted(self.scan.pixels.keys() - self.ignored)

    def decide(self, table: ClassNames | None) -> Meaning:
        """Decide which value is which class; `table` is the file that names them."""
        hints, found = self.hints, sorted(self.scan.pixels)
        if not self.values:
            raise UserError(
                f"{self.root}: every pixel of the masks is {ranges(found)}, which is ignored: "
                "there is nothing to learn"
            )
        if hints.classes is None and table and table.numbers:
            return self.by_numbers(table, table.numbers)
        names = hints.classes or (table.names if table else None)
        if names is None:
            raise UserError(f"{self.root}: {self.no_names()}")
        check_number(names)
        if found != [0, IGNORED] or hints.ignore is not None:
            return self.in_order(names)
        if len(names) != 2:
            raise UserError(f"masks have the values 0 and 255; expected 2 names, got {len(names)}")
        line = f"values 0 and 255 are the classes {names[0]} and {names[1]}: written as 0, 1"
        self.notes.append(line)
        return Meaning(names, mask_table=table_of({0: 0, IGNORED: 1}))

    def no_names(self) -> str:
        """Say how many names are needed."""
        found = sorted(self.scan.pixels.keys() - {self.hints.ignore})
        number = 2 if found == [0, IGNORED] else max(self.values) + 1
        return (
            f"masks have {count(len(found), 'labels')} ({ranges(found)}) and no names: give "
            f"--classes with {number} names, or write classes.txt with a name a line"
            f"{self.scan.jpegs()}"
        )

    def in_order(self, names: list[str]) -> Meaning:
        """Decide which value is the first name's, where nothing but their order says it."""
        values, ignore, largest = self.values, self.hints.ignore, max(self.values)
        first = 0
        named = names[0].lower() in NO_CLASS | {"background"}  # the value 0 has a name
        if ignore == 0 and not (named and largest < len(names)):
            self.notes.append(f"value 0 is ignored, and 1 is {names[0]} (reduce_zero_label)")
            first = 1
        elif ignore is None and values[0] > 0 and largest == len(names):
            self.notes.append(f"no pixel is 0: value 1 is taken for {names[0]} (reduce_zero_label)")
            first = 1
        if strays := [value for value in values if value >= len(names) + first]:
            raise UserError(f"{self.root}: {self.stray(strays, names)}")
        if first:
            return Meaning(names, reduce_zero_label=True)
        there = sorted(self.ignored & self.scan.pixels.keys())
        self.notes += [f"value {v} is ignored, {self.scan.share(v)}" for v in there]
        if ignore is not None and ignore not in there:
            self.notes.append(f"value {ignore}, which is to be ignored, never occurs")
        if len(there) == 2:  # the host ignores one label alone
            labels = {value: value for value in values} | dict.fromkeys(there, IGNORED)
            return Meaning(names, mask_table=table_of(labels))
        return Meaning(names, ignore_index=there[0] if there else IGNORED)

    def stray(self, strays: list[int], names: list[str]) -> str:
        """Say that values have no class, and what may be meant."""
        value, number = strays[0], len(names)
        share = self.scan.share(value)
        line = f"value {value} is {share}, but {number} classes are 0 to {number - 1}"
        if jpegs := self.scan.jpegs():
            return f"{line}{jpegs}"
        if len(strays) > 1:
            return f"{line} (also {ranges(strays[1:])}): expected {max(strays) + 1} names"
        ways = [f"{value + 1} names"]
        if self.hints.ignore is None:
            ways.insert(0, f"--ignore {value}")
            if 0 in self.scan.pixels and value == number:
                ways.insert(1, f"--ignore 0 if 0 is no class and 1 is {names[0]}")
        return f"{line}: give {', or '.join(ways)}"

    def by_numbers(self, table: ClassNames, numbers: list[int]) -> Meaning:
        """Decide by a table that gives each class its value."""
        pairs = zip(numbers, table.names, strict=True)
        rows = sorted((number, name) for number, name in pairs if number not in self.ignored)
        known, names = [number for number, _ in rows], [name for _, name in rows]
        check_number(names)
        if strays := [value for value in self.values if value not in known]:
            raise UserError(
                f"{self.root}: value {strays[0]} is {self.scan.share(strays[0])} and not in "
                f"{table.file}; add a line for it, or give --ignore {strays[0]}"
            )
        if known == list(range(len(known))):
            return self.in_order(names)
        others = self.scan.pixels.keys() & self.ignored - {0, IGNORED}
        if known == list(range(1, len(known) + 1)) and not others:
            self.notes.append(f"value 1 is {names[0]}, and 0 is ignored (reduce_zero_label)")
            return Meaning(names, reduce_zero_label=True)
        self.notes.append(f"values {few(known, 20)} are written as labels 0 to {len(known) - 1}")
        labels = {number: label for label, number in enumerate(known)}
        return Meaning(names, mask_table=table_of(dict.fromkeys(self.ignored, IGNORED) | labels))


def ranges(values: list[int]) -> str:
    """Write numbers, in their order, with `to` for those that follow each other."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return few((f"{run[0]} to {run[-1]}" if run[1:] else run[0] for run in runs), 8)
