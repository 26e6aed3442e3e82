"""Decide what the values of masks mean: the classes and their order, and what is not learnt."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from .class_names import ClassNames, Colour, read_names
from .layout import Hints
from .mask_files import IGNORED, Scan, code_of, colour_of
from .tree import Tree, count, some

NO_CLASS = frozenset(("void", "ignore", "ignored", "unlabeled", "unlabelled", "unlabel"))


@dataclass
class Meaning:
    """Say what the values of masks mean; the fields are those of `Layout`."""

    classes: list[str]
    palette: list[Colour] | None = None
    reduce_zero_label: bool = False
    ignore_index: int = IGNORED
    table: dict[Colour, int] | None = None


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
    table = read_names(tree.root, tree)
    if table:
        notes.append(f"classes from {table.file}")
    if scan.coloured and table and table.colours:
        return by_colours(tree, scan, table, table.colours, hints, notes)
    table_of_greys = None
    if scan.coloured:
        scan = greys(tree, scan)
        notes.append("masks are RGB of equal red, green and blue, taken as labels")
        table_of_greys = {(v, v, v): v for v in [*scan.pixels, IGNORED]}
    meaning = by_values(tree, scan, table, hints, notes)
    if table_of_greys and meaning.table is None:
        meaning.table = table_of_greys
    if table and table.colours and meaning.classes == table.names:
        meaning.palette = table.colours
    elif scan.palette and meaning.table is None:
        first = int(meaning.reduce_zero_label)
        palette = scan.palette[first : first + len(meaning.classes)]
        meaning.palette = palette if len(palette) == len(meaning.classes) else None
    return meaning


def by_colours(
    tree: Tree,
    scan: Scan,
    table: ClassNames,
    colours: list[Colour],
    hints: Hints,
    notes: list[str],
) -> Meaning:
    """Decide by a table of colours."""
    if unknown := [value for value in scan.pixels if value not in set(map(code_of, colours))]:
        most = max(unknown, key=lambda value: scan.pixels[value])
        others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{tree.root}: the colour {colour_of(most)}{others} is {scan.share(most)} and not in "
            f"{table.file}; add a line for it, such as 'void'"
        )
    if hints.ignore is not None:
        raise UserError(
            f"--ignore is for masks of labels, and these have colours: call a class 'void' in "
            f"{table.file}"
        )
    left = [name for name in dict.fromkeys(table.names) if name.lower() in NO_CLASS]
    names = [name for name in dict.fromkeys(table.names) if name not in left]
    if hints.classes is not None:
        if wrong := [name for name in hints.classes if name not in names]:
            raise UserError(f"--classes names {some(wrong)}; {table.file} has {some(names, 20)}")
        left += [name for name in names if name not in hints.classes]
        names = list(hints.classes)
    if left:
        notes.append(f"not learnt (label {IGNORED}): {some(left, 20)}")
    check_number(names)
    labels = {name: label for label, name in enumerate(names)}
    by_colour = {
        colour: labels.get(name, IGNORED) for colour, name in zip(colours, table.names, strict=True)
    }
    notes.append(f"masks have colours, which are written as labels: {count(len(names), 'class')}es")
    palette = [next(c for c, n in zip(colours, table.names, strict=True) if n == x) for x in names]
    return Meaning(names, palette, table=by_colour)


def greys(tree: Tree, scan: Scan) -> Scan:
    """Return the values of masks whose colours are all grey."""
    coloured = [v for v in scan.pixels if len(set(colour_of(v))) > 1]
    if coloured:
        colours = sorted(colour_of(v) for v in scan.pixels)
        raise UserError(
            f"{tree.root}: masks have {count(len(colours), 'colour')} ({some(colours, 4)}) and "
            "nothing says which is which class; write class_dict.csv with lines 'name,r,g,b'"
        )
    grey = Scan()
    for value, pixels in scan.pixels.items():
        grey.pixels[value & 255] = pixels
        grey.first[value & 255] = scan.first[value]
    return grey


def by_values(
    tree: Tree, scan: Scan, table: ClassNames | None, hints: Hints, notes: list[str]
) -> Meaning:
    """Decide by the values, with the names of a file or of a person."""
    values = sorted(set(scan.pixels) - {IGNORED, hints.ignore})
    if not values:
        raise UserError(
            f"{tree.root}: every pixel of the masks is {ranges(sorted(scan.pixels))}, which is "
            "ignored: there is nothing to learn"
        )
    if hints.classes is None and table and table.numbers:
        return by_numbers(tree, scan, table, table.numbers, hints, notes)
    names = hints.classes or (table.names if table else None)
    if names is None:
        raise UserError(no_names(tree, scan, hints))
    check_number(names)
    if set(scan.pixels) == {0, IGNORED} and hints.ignore is None:
        notes.append(f"values 0 and 255 are the classes {names[0]} and {names[1]}: written as 0, 1")
        check_two(names)
        return Meaning(list(names), table={(0, 0, 0): 0, (IGNORED,) * 3: 1})
    return with_names(tree, scan, list(names), hints, notes)


def check_number(names: list[str]) -> None:
    """Raise UserError where there is nothing to tell one class from."""
    if len(names) < 2:
        raise UserError(
            f"one class ({some(names)}) is nothing to tell from another; name the background, too: "
            f"--classes background,{names[0] if names else 'thing'}"
        )


def check_two(names: list[str]) -> None:
    """Raise UserError where masks of two values have more names."""
    if len(names) != 2:
        raise UserError(f"masks have the values 0 and 255; expected 2 names, got {len(names)}")


def no_names(tree: Tree, scan: Scan, hints: Hints) -> str:
    """Say how many names are needed."""
    values = sorted(set(scan.pixels) - {hints.ignore})
    largest = max((value for value in values if value != IGNORED), default=0)
    number = 2 if values == [0, IGNORED] else largest + 1
    return (
        f"{tree.root}: masks have {count(len(values), 'label')} ({ranges(values)}) and no names: "
        f"give --classes with {number} names, or write classes.txt with a name a line"
    )


def ranges(values: list[int]) -> str:
    """Write numbers, in their order, with `to` for those that follow each other."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return some((f"{run[0]} to {run[-1]}" if run[1:] else run[0] for run in runs), 8)


def with_names(tree: Tree, scan: Scan, names: list[str], hints: Hints, notes: list[str]) -> Meaning:
    """Decide which value is the first name's, where nothing but their order says it."""
    values = sorted(set(scan.pixels) - {IGNORED, hints.ignore})
    ignore = IGNORED if hints.ignore is None else hints.ignore
    first = 0
    named = names[0].lower() in NO_CLASS | {"background"}  # the value 0 has a name
    if hints.ignore == 0 and not (named and max(values) < len(names)):
        notes.append(f"value 0 is ignored, and 1 is {names[0]} (reduce_zero_label)")
        first = 1
    elif hints.ignore is None and values[0] > 0 and max(values) == len(names):
        notes.append(f"no pixel is 0: value 1 is taken for {names[0]} (reduce_zero_label)")
        first = 1
    if strays := [value for value in values if value >= len(names) + first]:
        raise UserError(f"{tree.root}: {stray(scan, strays, names, hints)}")
    if first:
        return Meaning(names, reduce_zero_label=True)
    if ignore != IGNORED:
        notes.append(
            f"value {ignore} is ignored, {scan.share(ignore)}"
            if ignore in scan.pixels
            else f"value {ignore}, which is to be ignored, never occurs"
        )
        if IGNORED in scan.pixels:  # a data set of the host ignores one label alone
            labels = {(v, v, v): v for v in values}
            return Meaning(names, table={**labels, (ignore,) * 3: IGNORED, (IGNORED,) * 3: IGNORED})
    elif IGNORED in scan.pixels:
        notes.append(f"value {IGNORED} is ignored, {scan.share(IGNORED)}")
    return Meaning(names, ignore_index=ignore)


def stray(scan: Scan, strays: list[int], names: list[str], hints: Hints) -> str:
    """Say that values have no class, and what may be meant."""
    value, more = strays[0], len(names)
    line = f"value {value} is {scan.share(value)}, but {more} classes are 0 to {more - 1}"
    if len(strays) > 1:
        return (
            f"{line} (also {ranges(strays[1:])}): expected {max(strays) + 1} names"
            if max(strays) < IGNORED
            else f"{line} (also {ranges(strays[1:])}): expected masks of labels from 0"
        )
    ways = [f"{value + 1} names"]
    if hints.ignore is None:
        ways.insert(0, f"--ignore {value}")
        if 0 in scan.pixels and value == more:
            ways.insert(1, f"--ignore 0 if 0 is no class and 1 is {names[0]}")
    return f"{line}: give {', or '.join(ways)}"


def by_numbers(
    tree: Tree,
    scan: Scan,
    table: ClassNames,
    numbers: list[int],
    hints: Hints,
    notes: list[str],
) -> Meaning:
    """Decide by a table that gives each class its value."""
    left = {IGNORED, hints.ignore}
    rows = sorted((n, name) for n, name in zip(numbers, table.names, strict=True) if n not in left)
    names = [name for _, name in rows]
    check_number(names)
    known = [number for number, _ in rows]
    if strays := sorted(set(scan.pixels) - set(known) - left):
        raise UserError(
            f"{tree.root}: value {strays[0]} is {scan.share(strays[0])} and not in {table.file}; "
            f"add a line for it, or give --ignore {strays[0]}"
        )
    if known == list(range(len(known))):
        return with_names(tree, scan, names, hints, notes)
    if known == list(range(1, len(known) + 1)) and (0 not in scan.pixels or hints.ignore == 0):
        notes.append(f"value 1 is {names[0]}, and 0 is ignored (reduce_zero_label)")
        return Meaning(names, reduce_zero_label=True)
    notes.append(f"values {some(known, 20)} are written as labels 0 to {len(known) - 1}")
    labels = {(n, n, n): label for label, n in enumerate(known)}
    ignored = {(n,) * 3: IGNORED for n in left if n is not None}
    return Meaning(names, table={**ignored, **labels})
