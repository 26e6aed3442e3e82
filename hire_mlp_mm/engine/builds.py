"""Find out which part of a config a class refuses, and name the key and what it should be."""

from __future__ import annotations

import difflib
import inspect
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry
from mmengine.runner import FlexibleRunner, Runner
from torch.utils.data import DataLoader

from ..data.layout import SPLITS
from ..errors import UserError, describe, short
from ..registry import SCOPE
from .harden import last_name, name_of
from .quiet import quiet

REGISTRIES = [value for value in vars(root).values() if isinstance(value, Registry)]

# What a run reads of a config.
READ = frozenset(
    name for kind in (Runner, FlexibleRunner) for name in inspect.signature(kind).parameters
) | {"auto_scale_lr", "custom_imports", "runner_type", "sync_bn", "tta_model", "tta_pipeline"}

# What Python and mmengine say of a class that refuses its arguments, or that nobody knows.
UNKNOWN_ARGUMENT = re.compile(r"got an unexpected keyword argument '(\w+)'")
MISSING_ARGUMENT = re.compile(r"(\w+)\.__init__\(\) missing \d+ required .*?: '(\w+)'")
UNKNOWN_CLASS = re.compile(r"(\S+) is not in the .+? registry")


@contextmanager
def named_faults(cfg: Config) -> Iterator[None]:
    """Turn errors that a config's key makes, while its parts are built, into a line for people.

    Raises:
        UserError: the line, where the key was found; other errors pass as they are.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of a class of anybody's
        line = fault_of(error, cfg)
        if not line and (line := failed_part(error, cfg)):
            traceback.print_exc()  # the class may be at fault
        if not line:
            raise
        raise UserError(line) from error


def fault_of(error: Exception, cfg: Config) -> str:
    """Name the key of a config that made a class refuse to be built; empty if it is not found.

    Args:
        error: as it comes from `mmengine.registry.Registry.build`.
        cfg: that was to be built, hardened or not.
    """
    text = str(error)
    finders = (
        own_refusal,
        unknown_argument,
        missing_argument,
        unknown_class,
        fixed_classes,
        unbalanced,
        none_called,
        text_for_folders,
        one_of_three,
    )
    lines = (find(error, text, cfg) for find in finders)
    return next(filter(None, lines), "")


def own_refusal(error: Exception, text: str, cfg: Config) -> str:
    """Return what HireMLP, or its layer decay, says of its own arguments."""
    found = re.search(r"(HireMLP|layer decay): .*", text) if isinstance(error, ValueError) else None
    return short(found[0], 300) if found else ""


def unknown_argument(error: Exception, text: str, cfg: Config) -> str:
    """Name an argument that no class has, and the nearest one that it has."""
    found = UNKNOWN_ARGUMENT.search(text)
    if not isinstance(error, TypeError) or not found:
        return ""
    key = found[1]
    for path, part in parts_of(cfg):
        arguments = arguments_at(path, part, cfg)
        if key in part and arguments and key not in arguments:
            return f"{describe_part(path, part)} takes no {key!r}{cure(path, key, arguments)}"
    return ""


def missing_argument(error: Exception, text: str, cfg: Config) -> str:
    """Name an argument that a class needs."""
    found = MISSING_ARGUMENT.search(text)
    if not isinstance(error, TypeError) or not found:
        return ""
    for path, part in parts_of(cfg):
        made = [one for kind in classes_of(part, cfg) for one in getattr(kind, "__mro__", (kind,))]
        if found[2] not in part and found[1] in [one.__name__ for one in made]:
            return f"{describe_part(path, part)} needs {found[2]!r}: set {path}.{found[2]}"
    return ""


def unknown_class(error: Exception, text: str, cfg: Config) -> str:
    """Name a type that no registry has, and the nearest one of those that one has."""
    found = UNKNOWN_CLASS.search(text)
    if not isinstance(error, KeyError) or not found:
        return ""
    name = found[1].strip("'\"").removeprefix(f"{SCOPE}.")
    for path, part in parts_of(cfg):
        for key in ("type", "constructor"):
            if name_of(part.get(key) or "").removeprefix(f"{SCOPE}.") == name:
                return no_class(f"{path}.{key}", name, cfg)
    return ""


def none_called(error: Exception, text: str, cfg: Config) -> str:
    """Name a type that no registry has, where a class got None in its place."""
    if not isinstance(error, (TypeError, AttributeError)) or "None" not in text:
        return ""
    for path, part in parts_of(cfg):
        if isinstance(part.get("type"), str) and not classes_of(part, cfg):
            line = no_class(f"{path}.type", kind_of(part), cfg)
            if "did you mean" in line:  # not every dict with a type is built
                return line
    return ""


def no_class(key: str, name: str, cfg: Config) -> str:
    """Say that no class has the name at a key, and which one may be meant."""
    known = {one.rpartition(".")[2]: one for one in known_classes(cfg)}
    if name in known:
        return ""  # something else is at fault, such as a package that cannot be imported
    near = difflib.get_close_matches(name, known, 1, 0.7)
    ask = f"did you mean {near[0]!r}?" if near else "is its package among custom_imports?"
    return f"{key}: no class is called {name!r}; {ask}"


def fixed_classes(error: Exception, text: str, cfg: Config) -> str:
    """Name class names that are put over a segmentation data set whose own are fixed."""
    if not isinstance(error, ValueError):
        return ""
    for path, part in parts_of(cfg):
        names = (part.get("metainfo") or {}).get("classes") or ()
        for kind in classes_of(part, cfg) if names else ():
            fixed = (getattr(kind, "METAINFO", None) or {}).get("classes")
            if hasattr(kind, "get_label_map") and fixed and not set(names) <= set(fixed):
                other = next(name for name in names if name not in fixed)
                return (
                    f"{path}.metainfo.classes: {short(str(other))!r} is none of the {len(fixed)} "
                    f"classes of {kind_of(part)}, which are fixed; set {path}.type=BaseSegDataset "
                    f"for classes of your own, with its palette and suffixes (hire-mlp data does)"
                )
    return ""


def unbalanced(error: Exception, text: str, cfg: Config) -> str:
    """Name a data set that is to be balanced by classes and does not say which its images have."""
    if not isinstance(error, NotImplementedError):
        return ""
    for path, part in parts_of(cfg):
        if last_name(part.get("type")) == "ClassBalancedDataset":
            inner = kind_of(part.get("dataset") or {})
            return (
                f"{path}: ClassBalancedDataset asks which classes an image has, and {inner} does "
                f"not say it (get_cat_ids); set {path} to the {inner} alone"
            )
    return ""


def text_for_folders(error: Exception, text: str, cfg: Config) -> str:
    """Name a data set whose `data_prefix` is one folder where each of several has a key."""
    key = dict(mmdet="img", mmseg="img_path").get(cfg.get("default_scope"))  # others take a text
    if not (key and isinstance(error, AttributeError) and "'str' object" in text):
        return ""
    for path, part in parts_of(cfg):
        if isinstance(prefix := part.get("data_prefix"), str):
            return (
                f"{path}.data_prefix is the text {short(prefix)!r}; expected a dict of folders: "
                f"set {path}.data_prefix.{key}, for the images"
            )
    return ""


def one_of_three(error: Exception, text: str, cfg: Config) -> str:
    """Name which of a split's loader, loop and evaluator (or optimizer) is set to None alone."""
    if not isinstance(error, ValueError) or "should be either all None or not None" not in text:
        return ""
    for split in SPLITS:
        last = "optim_wrapper" if split == "train" else f"{split}_evaluator"
        keys = [f"{split}_dataloader", f"{split}_cfg", last]
        absent = [key for key in keys if cfg.get(key) is None]
        if 0 < len(absent) < len(keys):
            given = " and ".join(key for key in keys if key not in absent)
            cure = f"set {' and '.join(absent)}, or all three to None"
            return f"{' and '.join(absent)} is None, and {given} not: {cure}"
    return ""


def failed_part(error: Exception, cfg: Config) -> str:
    """Name the innermost part of a config that was being made when an error was raised.

    Of an assertion without words, what it asked for is said.
    """
    if isinstance(error, OSError):
        return ""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    parts = [*parts_of(cfg)]
    for frame in reversed(frames):
        if frame.f_code.co_name != "__init__" or "self" not in frame.f_locals:
            continue
        made = type(frame.f_locals["self"]).__name__
        alike = [pair for pair in parts if last_name(pair[1].get("type")) == made]
        if alike:
            # Of several parts of a class, the one whose arguments the frame has.
            path, part = max(alike, key=lambda pair: agreeing(pair[1], frame.f_locals))
            asked = "" if str(error) else traceback.extract_tb(error.__traceback__)[-1].line
            fault = describe(error) + (f": {asked}" if asked else "")
            return f"{describe_part(path, part)} cannot be built: {fault}"
    return ""


def agreeing(part: Any, found: dict[str, Any]) -> bool:
    """Tell whether a part's arguments are those that a frame has."""
    return all(repr(found.get(key, value)) == repr(value) for key, value in part.items())


# Parts of a config ------------------------------------------------------------------------------


def parts_of(owner: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, dict) of each part of a config, the outer ones first."""
    if isinstance(owner, dict) and path:
        yield path, owner
    pairs = enumerate(owner) if isinstance(owner, (list, tuple)) else owner.items()
    for key, value in pairs:
        if isinstance(value, (dict, list, tuple)):
            yield from parts_of(value, f"{path}.{key}" if path else str(key))


def kind_of(part: Any) -> str:
    """Return the name of a part's class, as a person wrote it; empty if it has none."""
    kind = part.get("type")
    return name_of(kind).removeprefix(f"{SCOPE}.") if kind is not None else ""


def describe_part(path: str, part: Any) -> str:
    """Name a part by its path and class: `model.neck (FPN)`."""
    kind = kind_of(part)
    return f"{path} ({kind})" if kind else path


def cure(path: str, key: str, arguments: set[str]) -> str:
    """Say what to do about an argument that a class does not have."""
    near = difflib.get_close_matches(key, arguments, 1, 0.6)
    return f"; did you mean {near[0]!r}?" if near else f"; delete {path}.{key}"


def misspelt_keys(cfg: Config) -> Iterator[str]:
    """Yield a line for each key of a config that no run reads, and that looks like one it reads."""
    known = READ - {"tta_pipeline"}  # which a config's test_pipeline looks like
    for key in cfg:
        near = difflib.get_close_matches(str(key), known, 1, 0.85) if key not in READ else []
        if near and not str(key).startswith(f"{near[0]}_"):
            yield f"the config's {key} has no effect; did you mean {near[0]!r}?"


# Classes ----------------------------------------------------------------------------------------


def classes_of(part: Any, cfg: Config) -> list[Any]:
    """List the classes and functions of that name in all registries; none where nobody has it."""
    kind = part.get("type")
    if kind is None or not isinstance(kind, str):
        return [] if kind is None else [kind]
    found = []
    for registry in current_registries(cfg):
        try:
            one = registry.get(kind)
        except Exception:  # of a package that cannot be imported
            continue
        if one is not None and one not in found:
            found.append(one)
    return found


def current_registries(cfg: Config) -> list[Registry]:
    """List the registries that a runner of the config would search."""
    found = []
    scope = DefaultScope.overwrite_default_scope(cfg.get("default_scope") or "mmengine")
    with scope, quiet():  # mmengine warns of each registry that a host does not have
        for registry in REGISTRIES:
            with registry.switch_scope_and_registry(None) as current:
                found.append(current)
    return found


def known_classes(cfg: Config) -> Iterator[str]:
    """Yield the names of all classes that the config can name."""
    for registry in current_registries(cfg):
        while registry is not None:
            yield from registry.module_dict
            registry = registry.parent


def arguments_at(path: str, part: Any, cfg: Config) -> set[str]:
    """List the arguments that may stand in a part of a config; none where its class is unknown."""
    if path in [f"{split}_dataloader" for split in SPLITS]:
        return {*arguments_of(DataLoader), "dataset", "num_batch_per_epoch"}
    return set().union(*map(arguments_of, classes_of(part, cfg)))


def arguments_of(made: Any) -> set[str]:
    """List the arguments of a class or function; those of its bases, too, if it hands others on."""
    names: set[str] = set()
    for one in getattr(made, "__mro__", (made,)):
        call = vars(one).get("__init__") if inspect.isclass(one) else one
        if call is None or one is object:
            continue
        parameters = list(inspect.signature(call).parameters.values())
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names.update(one.name for one in parameters if one.kind in named)
        if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters):
            break
    return names - {"self"}
