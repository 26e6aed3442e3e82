"""Put a data set of your own into a config, and look at it.

    hire-mlp data retinanet_hire_s_1x_coco FOLDER --out my_config.py
    hire-mlp data upernet_hire_s_ade20k FOLDER --val 0.2 --ignore 11
    hire-mlp data retinanet_hire_s_1x_coco FOLDER --check

FOLDER holds COCO json, Pascal VOC XML, YOLO txt with its yaml, images beside masks, or a folder per
class; nothing is written into it. The written config says in its first lines what was changed, and
my_config_data.png shows samples of the training split as the pipeline gives them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.report import count
from ..errors import DataError
from . import OutcomeError
from .options import CONFIG, names_in, parse_size

if TYPE_CHECKING:
    from ..configure import DataChange
    from ..data.report import Report

HELP = "put a data set of your own into a config, and check it"
COUNTED = dict(detection="boxes", segmentation="pixels", classification="images")
EMPTY = dict(detection="without boxes", segmentation="all ignored", classification="empty")
MOST = 100  # lines of a table or a list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    from ..arch import ARCHS

    add = parser.add_argument
    add("config", help=CONFIG)
    add("folder", help="the folder of the data set")
    add("--out", help="config to write (default: NAME_FOLDER.py, here)")
    add(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="names, in the order of the labels, where no file has them; or those to learn of more",
    )
    add("--val", type=float, metavar="SHARE", help="draw a validation split, such as 0.2")
    add("--seed", type=int, default=0, help="of the split that is drawn (default: 0)")
    add("--ignore", type=int, metavar="LABEL", help="value of masks that is no class (255 always)")
    add("--arch", choices=list(ARCHS), help="have HireMLP of this size as the backbone")
    add("--weights", help="of HireMLP: a file, a URL, hire-mlp://NAME, or 'none'")
    add("--epochs", type=int, help="passes through the images; the schedule is scaled to them")
    size = "width and height in pixels of the images, in training, validation and test"
    add("--size", metavar="WxH", help=size)
    add("--check", action="store_true", help="write nothing; exit code 1 on findings and losses")


def main(args: argparse.Namespace) -> None:
    """Write the new config, or check the data set."""
    from ..configure.data import describe_beside, make_data
    from ..configure.reports import check_splits
    from ..configure.sizes import LEAST
    from ..data.layout import Hints
    from ..engine.config import check_file, read_config

    if Path(args.config).is_dir() and not Path(args.folder).is_dir():
        args.config, args.folder = args.folder, args.config
    cfg = read_config(args.config)
    if args.weights not in (None, "none"):
        check_file(args.weights, "weight file")
    hints = Hints(names_in(args.classes), args.val, args.seed, args.ignore)
    size = None
    if args.size:
        size = parse_size(args.size, LEAST, f"from {LEAST}x{LEAST} up", "width x height")
    if not args.check:
        describe_beside(cfg, args.folder, args.out).refuse_existing()
    try:
        change = make_data(
            cfg,
            args.folder,
            hints,
            out=args.out,
            arch=args.arch,
            checkpoint=args.weights,
            epochs=args.epochs,
            size=size,
        )
    except DataError as error:
        if args.check:
            raise OutcomeError(str(error)) from error
        raise
    reports = check_splits(change.cfg, change.layout, change.sources)
    tell(change, reports)
    if args.check:
        found = sum(concerns(report, bool(hints.classes)) for report in reports.values())
        if found:
            raise OutcomeError(f"{args.folder}: {count(found, 'findings')}, which stand above")
        return
    for report in reports.values():
        report.refuse()
    written = change.write(args.config)
    print("Changed:", *change.changes, sep="\n    ")
    print("Kept: all else. For you to decide:", *change.advice(), sep="\n    ")
    print("Written:", *written[:-1], sep="\n    ")
    config, sheet = map(shown, (written[-1], written[-2]))
    scaled = " --auto-scale-lr" if change.rate_is_for else ""
    print(f"{config}: look at {sheet}; train it with hire-mlp train {config}{scaled}")


def concerns(report: Report, chosen: bool) -> int:
    """Count what a person should look into: faults, what is lost, classes of which there is none.

    Args:
        report: of a split.
        chosen: whether a person has chosen the classes, and means others to be lost.
    """
    from ..data.coco.boxes import OF_OTHERS

    lost = [what for what in report.examples if not (chosen and what.startswith(OF_OTHERS))]
    absent = [name for name, number in report.per_class.items() if not number]
    return len(report.faults) + len(lost) + len(absent)


def shown(path: Path) -> str:
    """Write a path as short as it can be typed here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def tell(change: DataChange, reports: dict[str, Report]) -> None:
    """Print what was understood, and what is in the splits."""
    layout = change.layout
    print(f"{layout.root}:", *layout.notes, sep="\n    ")
    print(*table(change, reports), sep="\n")
    for title, lines in (
        ("Left out", left_out(reports)),
        ("Notes", [f"{r.source}{note}" for r in reports.values() for note in r.notes]),
        ("Findings", [f"{r.source}{fault}" for r in reports.values() for fault in r.faults]),
    ):
        if lines:
            more = [f"... and {len(lines) - MOST} more"] if len(lines) > MOST else []
            print(f"{title}:", *lines[:MOST], *more, sep="\n    ")


def left_out(reports: dict[str, Report]) -> list[str]:
    """List what is left out of each split or looks wrong, by reason, with a file of it."""
    return [
        f"{split}: {count(number, what)}"
        + (f", such as in {report.examples[what]}" if what in report.examples else "")
        for split, report in reports.items()
        for what, number in [*report.skipped.items(), *report.odd.items()]
        if number
    ]


def table(change: DataChange, reports: dict[str, Report]) -> Iterator[str]:
    """Write two tables: the images of each split, and what it has of each class."""
    task, layout = change.layout.task, change.layout
    rows: list[tuple[str, ...]] = [("split", "images", EMPTY[task], "sizes")]
    for split, report in reports.items():
        spread = " to ".join(f"{w}x{h}" for w, h in dict.fromkeys(report.sizes or ()))
        counted = [f"{report.images:,}", f"{report.empty:,}"] if report.images else ["-", "-"]
        rows.append((split, *counted, spread))
    yield from aligned(rows)
    classes = [(COUNTED[task], *reports)]
    for name in layout.classes[:MOST]:
        numbers = [report.per_class.get(name) for report in reports.values()]
        classes.append((name, *("-" if n is None else f"{n:,}" for n in numbers)))
    yield from aligned(classes)
    if len(layout.classes) > MOST:
        yield f"... and {len(layout.classes) - MOST} more classes"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Write the rows of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        yield "  ".join([row[0].ljust(widths[0]), *cells[1:]])
