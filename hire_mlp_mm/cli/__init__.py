"""The command `hire-mlp`: a verb, its options, and errors of one line.

Each verb is a file of this folder, which is imported when the verb is called: `HELP` is its line in
the list, `add_arguments(parser)` names its options, and `main(args)` does the work by functions of
the package that anybody can call. `tools/*.py` are the same verbs under their old names.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ..errors import UserError

PROG = "hire-mlp"
VERBS = ("train", "test", "swap", "export", "convert", "bench", "doctor")
ABOUT = """\
{prog} {version}: the Hire-MLP backbone for MMDetection, MMSegmentation and MMPretrain

usage: {prog} VERB [ARGUMENT ...]

{verbs}

  {prog} VERB --help   tell the arguments of a verb
  {prog} --version     tell the version

A config is a file, PACKAGE::FILE such as mmdet::detr/detr_r50_8xb2-150e_coco.py, or the name of a
recipe, such as upernet_hire_s_ade20k.
"""


class OutcomeError(Exception):
    """The work was done, and what came of it is wrong; the message is one line."""


class Parser(argparse.ArgumentParser):
    """Options of a verb; one that is unknown gets the nearest one, in a line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse a command line; options may stand anywhere among the rest."""
        for word in arguments:
            option = word.partition("=")[0]
            if word == "--":
                break
            if word.startswith("--") and option not in self._option_string_actions:
                known = [one for one in self._option_string_actions if one.startswith("--")]
                self.error(f"unknown option {option!r}{nearest(option, known)}")
        try:
            return self.parse_intermixed_args(arguments)
        except ValueError as error:  # of mmengine's reader of KEY=VALUE
            self.error(f"--cfg-options: expected KEY=VALUE, and the config before it ({error})")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in a line, and end with 2."""
        if "required: config" in message:
            message += "; name it before the options"
        end = "" if "did you mean" in message else f"; see {self.prog} --help"
        self.exit(2, f"{self.prog}: error: {message}{end}\n")


def nearest(word: str, known: Iterable[str]) -> str:
    """Ask whether the nearest of some words was meant; nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), 1, 0.62)
    return f"; did you mean {near[0]!r}?" if near else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command `hire-mlp`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    first = words[0] if words else ""
    if first in VERBS:
        call(first, f"{PROG} {first}", words[1:])
    elif first in ("-h", "--help", "help"):
        print(about(), end="")
    elif first == "--version":
        print(f"hire_mlp_mm {version()}")
    elif not first:
        print(about(), end="", file=sys.stderr)
        sys.exit(2)
    else:
        kind, known = ("option", ("--help", "--version")) if first[0] == "-" else ("verb", VERBS)
        end = nearest(first, known) or f"; expected one of {', '.join(known)}"
        print(f"{PROG}: error: unknown {kind} {first!r}{end}", file=sys.stderr)
        sys.exit(2)


def tool(name: str) -> None:
    """Run a verb as the script that the process was started with, such as `train.py`."""
    call(name, Path(sys.argv[0]).name, sys.argv[1:])


def call(verb: str, prog: str, words: Sequence[str]) -> None:
    """Run a verb with the words after it."""

    def work() -> int | None:
        module = load(verb)
        parser = Parser(prog=prog, description=module.__doc__)
        module.add_arguments(parser)
        arguments = parser.parse(words)
        if verb != "doctor":  # which wants to say what keeps the hosts from being imported
            importlib.import_module("hire_mlp_mm").register_if_possible()
        return module.main(arguments)

    run(work, prog)


def load(verb: str) -> ModuleType:
    """Import the file of a verb."""
    return importlib.import_module(f"{__name__}.{verb}")


def about() -> str:
    """Write the screen that lists the verbs."""
    lines = [f"  {verb:<9}{load(verb).HELP}" for verb in VERBS]
    return ABOUT.format(prog=PROG, version=version(), verbs="\n".join(lines))


def version() -> str:
    """Tell the version of the package."""
    return importlib.import_module("hire_mlp_mm").__version__


# Errors ------------------------------------------------------------------------------------------


def run(work: Callable[[], int | None], prog: str) -> None:
    """Do the work of a command; an error that the user can put right is one line and exit code 2.

    Args:
        work: what to do; it may return an exit code.
        prog: name of the command in errors.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from ..engine.processes import end_with_parent

        end_with_parent()
    try:
        code = work()
        if is_one_of_several():
            from ..engine.processes import leave_process_group

            leave_process_group()
    except OutcomeError as error:
        end(prog, str(error), 1)
    except (UserError, FileNotFoundError) as error:
        end(prog, text_of(error), 2, shared=getattr(error, "shared", True))
    except KeyboardInterrupt:
        end(prog, "interrupted", 130)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "hire_mlp_mm"):  # a fault of ours
            raise
        end(prog, f"{package} is not installed; '{PROG} doctor' says what is missing", 2)
    except Exception:
        if not is_one_of_several():
            raise
        from ..engine.processes import leave_at_once

        sys.excepthook(*sys.exc_info())
        leave_at_once(1)
    else:
        if code:
            sys.exit(code)


def text_of(error: Exception) -> str:
    """Cut an error to a line for people."""
    # FileNotFoundError by the interpreter carries its path apart from its message; one from a data
    # loader's worker carries the worker's traceback before its message.
    path = getattr(error, "filename", None)
    return f"{path} not found" if path else str(error).strip().splitlines()[-1]


def end(prog: str, text: str, code: int, shared: bool = True) -> NoReturn:
    """Say what went wrong, once on each machine where all processes know, and end."""
    local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    if local_rank == "0" or not shared:
        print(f"{prog}: error: {text}", file=sys.stderr)
    if is_one_of_several():
        from ..engine.processes import leave_at_once

        leave_at_once(code)
    sys.exit(code)


def is_one_of_several() -> bool:
    """Tell whether this process works with others by torch.distributed."""
    distributed = sys.modules.get("torch.distributed")
    return bool(distributed and distributed.is_available() and distributed.is_initialized())
