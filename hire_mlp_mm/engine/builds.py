"""Find out which part of a config a class refuses, and name the key and what it should be."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine import registry as root
from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry
from torch.utils.data import DataLoader

from ..errors import UserError, short
from ..registry import SCOPE
from .harden import SPLITS, name_of

REGISTRIES = [value for value in vars(root).values() if isinstance(value, Registry)]

# What Python and mmengine say of a class that refuses its arguments, or that nobody knows.
UNKNOWN_ARGUMENT = re.compile(r"got an unexpected keyword argument '(\w+)'")
MISSING_ARGUMENT = re.compile(r"(\w+)\.__init__\(\) missing \d+ required .*?: '(\w+)'")
UNKNOWN_CLASS = re.compile(r"(\S+) is not in the \S+ registry")


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
    finders = (own_refusal, unknown_argument, missing_argument, unknown_class, fixed_classes)
    lines = (find(error, text, cfg) for find in (*finders, unbalanced))
    return next(filter(None, lines), "")


def own_refusal(error: Exception, text: str, cfg: Config) -> str:
    """Return what HireMLP says of its own arguments."""
    start = text.find("HireMLP: ")
    return short(text[start:], 300) if isinstance(error, ValueError) and start >= 0 else ""


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
    paths = [path for path, part in parts_of(cfg) if kind_of(part) == name]
    if not paths:
        return ""
    known = {one.rpartition(".")[2]: one for one in known_classes(cfg)}
    near = difflib.get_close_matches(name, known, 1, 0.7)
    ask = f"did you mean {near[0]!r}?" if near else "is its package among custom_imports?"
    return f"{paths[0]}.type: no class is called {name!r}; {ask}"


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
        if kind_of(part).rpartition(".")[2] == "ClassBalancedDataset":
            inner = kind_of(part.get("dataset") or {})
            return (
                f"{path}: ClassBalancedDataset asks which classes an image has, and {inner} does "
                f"not say it (get_cat_ids); set {path} to the {inner} alone"
            )
    return ""


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


def current_registries(cfg: Config) -> Iterator[Registry]:
    """Yield the registries that a runner of the config would search."""
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope") or "mmengine"):
        for registry in REGISTRIES:
            with registry.switch_scope_and_registry(None) as current:
                yield current


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
