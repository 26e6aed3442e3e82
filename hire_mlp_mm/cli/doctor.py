"""Tell what is installed, what works, and what cures the rest.

Exit code 1 where something keeps a recipe from running.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap

from .. import doctor
from . import version

HELP = "tell what is installed, what works, and what cures the rest"
WIDTH = 80
MARKS = {doctor.OK: " ", doctor.NOTE: "-", doctor.FAULT: "!"}
INDENT = 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def main(args: argparse.Namespace) -> int:
    """Examine the environment, and print a screen."""
    findings = doctor.examine()
    well = doctor.is_well(findings)
    if args.json:
        said = dict(version=version(), well=well, findings=[one.as_dict() for one in findings])
        print(json.dumps(said, indent=2))
    else:
        print("\n".join(screen(findings)))
    return 0 if well else 1


def screen(findings: list[doctor.Finding]) -> list[str]:
    """Write the findings as lines for a terminal."""
    lines = [f"hire_mlp_mm {version()}, {sys.prefix}", ""]
    for one in findings:
        lines += row(one)
    faults = sum(one.level == doctor.FAULT for one in findings)
    notes = sum(one.level == doctor.NOTE for one in findings)
    end = ["Nothing keeps the recipes from running."]
    if faults:
        end = [f"{count(faults, 'fault')} (!) in the way of recipes; -> is the cure."]
    if notes:
        end += [f"{count(notes, 'note')} (-): no fault, unless you need it."]
    return [*lines, "", *end]


def count(number: int, word: str) -> str:
    """Write a number of things."""
    return f"{number} {word}" + "s" * (number != 1)


def row(one: doctor.Finding) -> list[str]:
    """Write a finding; its cure in the same line if there is room."""
    head = f"{MARKS[one.level]} {one.name}".ljust(INDENT)
    cure = f"-> {one.cure}" if one.cure else ""
    if cure and len(line := f"{head}{one.text}  {cure}") <= WIDTH:
        return [line]
    indent = " " * INDENT
    lines = textwrap.wrap(
        head + one.text, WIDTH, subsequent_indent=indent, break_on_hyphens=False
    ) or [head]
    return [*lines, f"{indent}{cure}"] if cure else lines
