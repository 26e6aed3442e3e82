"""Check the images of a classification: a folder for each class, or a list of files and labels."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import short
from .listing import absent_files, files_under, is_image
from .report import Report, count, few, without
from .tree import left_behind

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")  # that MMPretrain reads


@dataclass
class Folders:
    """Hold what lies in the folders of classes.

    Attributes:
        images: how many images each folder has, by its name, in the order of the labels.
        left_out: folders that systems and programs leave behind; they are no classes.
        within: images in such folders within the folders of classes.
        outside: images that are in no folder.
        others: files that are not read, by their suffix.
    """

    images: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    within: int = 0
    outside: int = 0
    others: Counter[str] = field(default_factory=Counter)


def class_folders(folder: str, classes: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
    """Return the folders of classes, in the order of the labels, and those left out.

    Args:
        folder: in which they lie.
        classes: names that are of classes, however odd, or None.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    left_out = [name for name in names if left_behind(name) and name not in (classes or ())]
    return [name for name in names if name not in left_out], left_out


def read_folders(
    folder: str, classes: Sequence[str] | None = None, suffixes: Sequence[str] = SUFFIXES
) -> Folders:
    """List the folders of classes, and count their images; see `check_folders`."""
    names, left_out = class_folders(folder, classes)
    found = Folders(dict.fromkeys(names, 0), left_out)
    beginning = os.path.join(folder, "")
    for path in files_under(beginning):
        name, *inner = path.removeprefix(beginning).split(os.sep)
        if inner and name in left_out:
            continue
        if not path.lower().endswith(tuple(suffixes)):
            found.others[os.path.splitext(path)[1]] += 1
        elif inner:
            found.images[name] += 1
            found.within += any(left_behind(part) for part in inner)
        else:
            found.outside += 1
    return found


def samples_of(
    folder: str, names: Sequence[str], suffixes: Sequence[str] = SUFFIXES
) -> Iterator[tuple[str, int]]:
    """Yield (file, label) of the images in the folders of classes, as MMPretrain does."""
    for label, name in enumerate(names):
        for path in sorted(files_under(os.path.join(folder, name))):
            if path.lower().endswith(tuple(suffixes)):
                yield path, label


def check_folders(
    folder: str | Path,
    classes: Sequence[str] | None = None,
    suffixes: Sequence[str] = SUFFIXES,
    labelled: bool = True,
) -> Report:
    """Check that the folders in a folder are the classes, and count what is passed over.

    Args:
        folder: which holds a folder for each class.
        classes: the names that a config gives them, or None. They may be other names than those
            of the folders; if one of them is a folder's, all have to be.
        suffixes: of the images that are read, in lower case; files may have them in upper case.
        labelled: whether the folders are classes; else all that is counted is what is passed over.

    Returns:
        A report with the images of each class.
    """
    report = Report(str(folder))
    found = read_folders(str(folder), classes, suffixes)
    report.images = sum(found.images.values()) + (0 if labelled else found.outside)
    for suffix, number in sorted(found.others.items()):
        image = is_image(f"name{suffix}")
        hint = " (not among the data set's `extensions`)" if image else ""
        report.skipped[f"{'images' if image else 'files'} {suffix or 'without suffix'}{hint}"] = (
            number
        )
    if labelled:
        report_classes(report, found, classes)
    return report


def report_classes(report: Report, found: Folders, classes: Sequence[str] | None) -> None:
    """Put into a report what the folders of classes say of the classes."""
    report.faults += faults_of_folders(found, classes)
    names = classes if classes is not None and len(classes) == len(found.images) else found.images
    report.per_class = dict(zip(names, found.images.values(), strict=True))
    if found.outside:
        report.skipped["images outside of the folders"] = found.outside
    if found.left_out:
        report.notes.append(f": left out {few(found.left_out)}, which is no class")
    if found.within:
        report.notes.append(
            f": {count(found.within, 'images')} within folders such as .ipynb_checkpoints of a "
            "class, read as others"
        )
    if not report.faults:
        report.notes += without(report.per_class, "images")


def faults_of_folders(found: Folders, classes: Sequence[str] | None) -> Iterator[str]:
    """Yield why folders would give wrong labels, or none."""
    names = list(found.images)
    if not names:
        lost = f"; {found.outside} images lie in it" if found.outside else ""
        yield f" has no folders; expected a folder for each class{lost}"
    elif not any(found.images.values()):
        most = ", ".join(f"{number} {suffix}" for suffix, number in found.others.most_common(3))
        yield f" has no images in its folders {few(names)}" + (f", but {most}" if most else "")
    elif classes is not None:
        yield from differences(names, list(classes))
    if len(names) == 1:
        yield (
            f" has the folder {names[0]} alone, and there is nothing to tell one class from; "
            "expected a folder for each class"
        )


def differences(folders: list[str], classes: list[str]) -> Iterator[str]:
    """Yield how the names of classes differ from those of the folders, in the labels' order."""
    if not {*folders} & {*classes}:  # such as ImageNet's, which say what a number means
        if len(folders) != len(classes):
            yield (
                f" has {len(folders)} folders ({few(folders)}), and the data set {len(classes)} "
                f"classes ({few(classes)}); set metainfo=dict(classes=[...]), or leave the "
                "classes of CustomDataset to the folders"
            )
        return
    lost = [f"no folder of the class {name}" for name in classes if name not in folders]
    more = [f"the folder {name}, which is no class" for name in folders if name not in classes]
    if lost or more:
        cure = "; make an empty folder, if it has no images here" if lost else ""
        yield f" has {few([*lost, *more])}; MMPretrain numbers the folders that it finds{cure}"
    elif folders != classes:
        yield (
            f" has the folders {few(folders)}, which are the labels 0, 1, ... in this order; the "
            f"config names the classes {few(classes)}: put them into the folders' order"
        )


def check_list(
    file: str | Path,
    folder: str | Path,
    classes: Sequence[str] | None = None,
    labelled: bool = True,
) -> Report:
    """Check a file with a line for each image: its name, a space, and its label.

    Args:
        file: the list.
        folder: in which the images are.
        classes: the names, or None where the data set has none.
        labelled: whether the lines have labels; else each is a name.

    Returns:
        A report with the images of each class; by the labels where these have no names.
    """
    report = Report(str(file))
    labels: Counter[int] = Counter()
    lines_of: dict[str, int] = {}  # by the image
    most = sys.maxsize if classes is None else len(classes) - 1
    expected = "a label" if classes is None else f"a label from 0 to {most}"
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            name, label = split_line(line) if labelled else (line.rstrip("\r\n"), 0)
            if name and label is not None and 0 <= label <= most:
                labels[label] += 1
                lines_of.setdefault(os.path.join(folder, name), number)
            else:
                found = short(line.strip()) or "nothing"
                fault = f"expected a file, a space and {expected}; found {found}"
                report.faults.append(f", line {number}: {fault}")
    report.images = labels.total()
    if twice := report.images - len(lines_of):
        report.notes.append(f": {count(twice, 'lines')} with an image that a line before has")
    if absent := absent_files(lines_of):
        first = min(absent, key=lines_of.__getitem__)
        more = f" ({len(absent)} of {len(lines_of)} images are missing)" if absent - {first} else ""
        report.faults.append(f", line {lines_of[first]}: {first} not found{more}")
    names = {label: str(label) for label in sorted(labels)} if labelled else {}
    names = names if classes is None else dict(enumerate(classes))
    report.per_class = {name: labels[label] for label, name in names.items()}
    report.notes += without(report.per_class, "images")
    return report


def split_line(line: str) -> tuple[str, int | None]:
    """Split a line into a file's name, in which there may be spaces, and a label, None if none."""
    name, _, label = line.strip().rpartition(" ")
    try:
        return name, int(label)
    except ValueError:
        return name, None
