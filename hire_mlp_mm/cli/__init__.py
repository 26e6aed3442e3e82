"""Run the command `hire-mlp`: a verb, its options, and errors of one line.

Each verb is a file of this folder, which is imported when the verb is called: `HELP` is its line in
the list, `add_arguments(parser)` names its options, and `main(args)` does the work by functions of
the package that anybody can call; `needs_openmmlab(args)` may say that the hosts are not needed.
`tools/*.py` are the same verbs under their old names.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, NoReturn

import hire_mlp_mm

from ..errors import UserError

PROG = "hire-mlp"
VERBS = (
    "data", "train", "test", "predict", "explain", "swap", "export", "convert", "bench", "doctor",
)  # fmt: skip
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
    """Report in one line that the work was done, and that what came of it is wrong."""


class Parser(argparse.ArgumentParser):
    """Parse the options of a verb; name the nearest one where an option is unknown.

    Attributes:
        keys: of the config that are set in the place of some options, which there are not.
    """

    keys: Mapping[str, str] = MappingProxyType({})

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
                known = [name for name in self._option_string_actions if name.startswith("--")]
                key = self.keys.get(option)
                hint = f"; did you mean --cfg-options {key}?" if key else nearest(option, known)
                self.error(f"unknown option {option!r}{hint}")
        try:
            return self.parse_intermixed_args(arguments)
        except ValueError as error:  # of mmengine's reader of KEY=VALUE
            self.error(f"--cfg-options: expected KEY=VALUE, and the config before it ({error})")
        except RecursionError:  # of the same, which reads lists and tuples, and no dicts
            self.error("--cfg-options: a dict is not read; set its keys one by one, KEY.NAME=VALUE")

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in a line, and end with 2."""
        if "required: config" in message:
            message += "; name it before the options"
        hint = "" if "did you mean" in message else f"; see {self.prog} --help"
        self.exit(2, f"{self.prog}: error: {message}{hint}\n")


def nearest(word: str, known: Iterable[str]) -> str:
    """Ask whether the nearest of some words was meant; nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), 1, 0.62)
    return f"; did you mean {near[0]!r}?" if near else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command `hire-mlp`."""
    first, *words = (sys.argv[1:] if arguments is None else arguments) or [""]
    if first in VERBS:
        call(first, f"{PROG} {first}", words)
    elif first == "--version":
        print(f"hire_mlp_mm {hire_mlp_mm.__version__}")
    elif first in ("", "-h", "--help", "help"):
        verbs = "\n".join(f"  {verb:<9}{import_verb(verb).HELP}" for verb in VERBS)
        screen = ABOUT.format(prog=PROG, version=hire_mlp_mm.__version__, verbs=verbs)
        print(screen, end="", file=sys.stdout if first else sys.stderr)
        sys.exit(0 if first else 2)
    else:
        kind, known = ("option", ("--help", "--version")) if first[0] == "-" else ("verb", VERBS)
        hint = nearest(first, known) or f"; expected one of {', '.join(known)}"
        end(PROG, f"unknown {kind} {first!r}{hint}", 2)


def tool(name: str) -> None:
    """Run a verb as the script that the process was started with, such as `train.py`."""
    call(name, Path(sys.argv[0]).name, sys.argv[1:])


def call(verb: str, prog: str, words: Sequence[str]) -> None:
    """Run a verb with the words after it."""

    def work() -> int | None:
        # mmengine finds the hosts' configs by it; nobody who runs a command can change that.
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")
        module = import_verb(verb)
        parser = Parser(prog=prog, description=module.__doc__)
        parser.keys = getattr(module, "KEYS", parser.keys)
        module.add_arguments(parser)
        arguments = parser.parse(words)
        if getattr(module, "needs_openmmlab", lambda arguments: True)(arguments):
            hire_mlp_mm.register_if_possible()
        return module.main(arguments)

    run(work, prog)


def import_verb(verb: str) -> ModuleType:
    """Import the file of a verb."""
    return importlib.import_module(f"{__name__}.{verb}")


# The process ------------------------------------------------------------------------------------


def run(work: Callable[[], int | None], prog: str) -> None:
    """Do the work of a command, which may return an exit code.

    An error that the user can put right is one line, which begins with `prog`, and exit code 2.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from ..engine.processes import end_with_parent

        end_with_parent()
    try:
        code = work()
        leave_process_group()
    except OutcomeError as error:
        end(prog, str(error), 1)
    except (UserError, FileNotFoundError) as error:
        # FileNotFoundError by the interpreter carries its path apart from its message; one from a
        # data loader's worker carries the worker's traceback before its message.
        path = getattr(error, "filename", None)
        text = f"{path} not found" if path else str(error).strip().splitlines()[-1]
        end(prog, text, 2, shared=getattr(error, "shared", True))
    except KeyboardInterrupt:
        end(prog, "interrupted", 130)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "hire_mlp_mm"):  # a fault of ours
            raise
        end(prog, f"{package} is not installed; '{PROG} doctor' says what is missing", 2)
    except Exception:
        if not process_group():
            raise
        sys.excepthook(*sys.exc_info())
        leave(1)
    if code:
        sys.exit(code)


def end(prog: str, text: str, code: int, shared: bool = True) -> NoReturn:
    """Say what went wrong, once on each machine where all processes know, and end."""
    local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    if local_rank == "0" or not shared:
        print(f"{prog}: error: {text}", file=sys.stderr)
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process; one of several at once, for in order it may wait minutes for the others."""
    if process_group():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def leave_process_group() -> None:
    """Leave the other processes of a run, if there are any, when all have done their work."""
    group = process_group()
    if group and group.get_backend() != "gloo":
        group.destroy_process_group()
    elif group:
        # Now and then gloo's threads abort a process that is taken down in order ("terminate
        # called without an active exception"), and its launcher reports a failure.
        group.barrier()
        leave(0)


def process_group() -> Any:
    """Return torch.distributed where this process works with others by it, else None."""
    distributed: Any = sys.modules.get("torch.distributed")
    together = distributed and distributed.is_available() and distributed.is_initialized()
    return distributed if together else None
