"""Tell what is installed, what works, and what cures the rest.

Exit code 1 where something keeps a recipe from running.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import asdict

from .. import __version__, doctor

HELP = "tell what is installed, what works, and what cures the rest"
WIDTH = 80
MARKS = {doctor.OK: " ", doctor.NOTE: "-", doctor.FAULT: "!"}
INDENT = 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def needs_openmmlab(args: argparse.Namespace) -> bool:
    """Say no: what keeps the hosts from being imported is told, and must not end the command."""
    return False


def main(args: argparse.Namespace) -> int:
    """Examine the environment, and print a screen."""
    findings = doctor.examine()
    well = doctor.is_well(findings)
    if args.json:
        listed = [asdict(finding) for finding in findings]
        print(json.dumps(dict(version=__version__, well=well, findings=listed), indent=2))
    else:
        print("\n".join(screen(findings)))
    return 0 if well else 1


def screen(findings: list[doctor.Finding]) -> list[str]:
    """Write the findings as lines for a terminal."""
    lines = [f"hire_mlp_mm {__version__}, {sys.prefix}", ""]
    for finding in findings:
        lines += row(finding)
    levels = [finding.level for finding in findings]
    faults, notes = levels.count(doctor.FAULT), levels.count(doctor.NOTE)
    end = ["Nothing keeps the recipes from running."]
    if faults:
        end = [f"{faults} fault{'s' * (faults > 1)} (!) in the way of recipes; -> is the cure."]
    if notes:
        end += [f"{notes} note{'s' * (notes > 1)} (-): no fault, unless you need it."]
    return [*lines, "", *end]


def row(finding: doctor.Finding) -> list[str]:
    """Write a finding; its cure in the same line if there is room."""
    head = f"{MARKS[finding.level]} {finding.name}".ljust(INDENT) + finding.text
    cure = f"-> {finding.cure}" if finding.cure else ""
    if cure and len(head) + len(cure) + 2 <= WIDTH:
        return [f"{head}  {cure}"]
    indent = " " * INDENT
    lines = textwrap.wrap(head, WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [head]
    return [*lines, f"{indent}{cure}"] if cure else lines
