"""Read the names of classes, with their colours or numbers, from the files where people keep them.

One class a line, in one of these ways: `name`; `number name` or `name,number`; `name,r,g,b`,
`r g b name` or `number,name,r,g,b`. The first line may be a heading.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .palette import Colour
from .tree import Tree, join, read_lines

# In this order: a file with colours or numbers says more than one with names alone.
FILES = (
    "class_dict.csv", "class_dict_seg.csv", "_classes.csv", "colormap.csv", "colormap.txt",
    "label_colors.txt", "labelmap.txt", "classes.csv", "labels.csv", "classes.txt",
    "class_names.txt", "labels.txt", "label_names.txt", "names.txt", "codes.txt", "obj.names",
    "classes.names",
)  # fmt: skip

# The ways to write a line. All lines of a file are written in one way: the first that fits them.
GAP = r"\s*[,;:\t]\s*"
WAYS = (
    r"(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+(?P<b>\d+)[\s,;]+(?P<name>\D.*)",
    rf"(?:(?P<number>\d+){GAP})?(?P<name>[^,;:\t]+){GAP}(?P<r>\d+)[\s,;]+(?P<g>\d+)[\s,;]+"
    r"(?P<b>\d+)[\s,;:]*",
    r"(?P<number>\d+)(?:\s*[,;:\t]\s*|\s+)(?P<name>\D.*)",
    rf"(?P<name>\D.*?){GAP}(?P<number>\d+)",
    r"(?P<name>.+)",
)


@dataclass
class ClassNames:
    """Hold the classes that a file names.

    Attributes:
        file: its name, relative to the data set's folder.
        names: a name for each line.
        colours: red, green and blue for each name; None where the file has none.
        numbers: the value in a mask for each name; None where the file has none.
    """

    file: str
    names: list[str]
    colours: list[Colour] | None = None
    numbers: list[int] | None = None


def read_names(tree: Tree) -> ClassNames | None:
    """Read the first file of a data set that names classes; None where there is none.

    Raises:
        DataError: if the file is empty, or a colour is not from 0 to 255.
    """
    by_name: dict[str, str] = {}
    for folder in sorted(tree.folders, key=lambda folder: (folder.count("/"), folder)):
        for name in tree.folders[folder]:
            by_name.setdefault(name.lower(), join(folder, name))
    file = next((by_name[name] for name in FILES if name in by_name), None)
    return parse(tree.root, file) if file else None


def parse(root: Path, file: str) -> ClassNames:
    """Parse the lines of a file that names classes."""
    lines = [line for line in read_lines(root / file) if not line.startswith("#")]
    matches = next(filter(None, (match_all(way, lines) for way in WAYS)), None)
    if not matches:
        raise DataError(f"{root / file} is empty; expected the name of a class on each line")
    groups = [match.groupdict() for match in matches]
    names = [group["name"].strip().strip("\"'") for group in groups]
    colours = numbers = None
    if all(group.get("r") for group in groups):
        colours = [(int(g["r"]), int(g["g"]), int(g["b"])) for g in groups]
    if all(group.get("number") for group in groups):
        numbers = [int(group["number"]) for group in groups]
    if colours and max(map(max, colours)) > 255:
        raise DataError(f"{root / file} has a colour beyond 255; expected red, green, blue")
    return ClassNames(file, names, colours, numbers)


def match_all(way: str, lines: list[str]) -> list[re.Match[str]] | None:
    """Match all lines, or all but a heading, with a way to write them; None if one is different."""
    matches = [re.fullmatch(way, line) for line in lines]
    if len(matches) > 1 and matches[0] is None:
        matches = matches[1:]
    whole = [match for match in matches if match is not None]
    return whole if len(whole) == len(matches) else None
