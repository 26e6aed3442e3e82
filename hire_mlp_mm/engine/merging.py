"""Merge `--cfg-options` into a config; refuse each that does not fit, and say what would."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from ..arch import resolve_arch
from ..errors import UserError, describe
from .builds import READ, arguments_at, describe_part
from .harden import last_name

NEAR = 0.85  # how alike a new key and a known one are if the new one is a slip


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Override settings of a config, one after the other.

    Args:
        cfg: is changed.
        options: values by their dotted keys, as `--cfg-options` takes them. An index names an
            element of a list; a key within `arch="small"` changes that arch; one within None makes
            a dict of it.

    Raises:
        UserError: an option does not fit the config; the message names its key.
    """
    # What is deleted goes first, whatever stands in its place.
    for key, value in sorted(options.items(), key=lambda option: "_delete_" not in option[0]):
        if key.endswith("_cfg") and str(value).lower() == "none" and value is not None:
            raise refusal(key, f"{value} is taken for text; write None, with a capital N")
        try:
            owner = find_owner(cfg, key, value)
            path, _, name = key.rpartition(".")
            if isinstance(owner, dict) and isinstance(owner.get(name), tuple):
                # `scale=400,300` is read as a list, and mmcv takes sizes as tuples alone.
                value = tuple(value) if isinstance(value, list) else value
            if isinstance(owner, list) and not isinstance(value, dict):  # mmengine merges dicts
                key, value = path, [value if str(i) == name else one for i, one in enumerate(owner)]
            cfg.merge_from_dict({key: value})
        except UserError:
            raise
        except Exception as error:  # of mmengine, or of an arch that is none
            raise UserError(f"--cfg-options {key}: {describe(error)}") from error


def find_owner(cfg: Config, key: str, value: Any) -> Any:
    """Return the dict or list that a key is set in; None where it is made on the way.

    Raises:
        UserError: the key cannot be set to this value.
    """
    names = key.split(".")
    if not all(names):
        raise UserError(f"--cfg-options {key}={value}: expected KEY=VALUE, KEY such as model.neck")
    owner: Any = None
    inner: Any = cfg
    for depth, name in enumerate(names):
        owner, path = inner, ".".join(names[:depth])
        if isinstance(owner, (list, tuple)):
            check_index(owner, path, name, ".".join(names[depth + 1 :]))
            inner = owner[int(name)]
            continue
        if not isinstance(owner, (Config, dict)):
            raise refusal(key, f"{path} is {owner!r}, and has no {name!r}")
        if depth == 0:
            check_variable(cfg, name, key)
        if name not in owner:
            check_new(cfg, owner, path, name, key)
            return None
        inner = owner[name]
        if depth < len(names) - 1 and (fields := fields_of(owner, name)) is not None:
            cfg.merge_from_dict({f"{path}.{name}".strip("."): dict(fields, _delete_=True)})
            inner = fields
    if isinstance(inner, dict) and "type" in inner and not isinstance(value, (dict, type(None))):
        has = ", ".join([*inner][:6])
        raise refusal(key, f"{describe_part(key, inner)} is a dict with {has}: set one, {key}.type")
    return owner


def check_variable(cfg: Config, name: str, key: str) -> None:
    """Raise UserError where a key is a variable whose value has been put elsewhere already."""
    if name not in cfg or name in READ:
        return
    parts = {one: cfg[one] for one in cfg if one in READ}
    places = [*places_of(cfg[name], parts)]
    if places:
        more = f" and {len(places) - 4} more" if len(places) > 4 else ""
        raise refusal(
            key,
            f"{name} is a variable of the config, which has been read; set what it stands for: "
            f"{', '.join(places[:4])}{more}",
        )


def places_of(value: Any, part: Any, path: str = "") -> Iterator[str]:
    """Yield the keys within a part of a config that have a value, or a path that begins with it."""
    if isinstance(part, (list, tuple)):
        part = dict(enumerate(part))
    for name, inner in part.items() if isinstance(part, dict) else ():
        key = f"{path}.{name}" if path else str(name)
        begun = isinstance(value, str) and "/" in value and str(inner).startswith(value)
        if begun or (type(inner) is type(value) and inner == value):
            yield key
        else:
            yield from places_of(value, inner, key)


def refusal(key: str, why: str) -> UserError:
    """Make the error of an option that does not fit."""
    return UserError(f"--cfg-options {key}: {why}")


def check_index(owner: Any, path: str, name: str, rest: str) -> None:
    """Raise UserError unless a name is an index of a list."""
    key, last = f"{path}.{name}" + (f".{rest}" if rest else ""), len(owner) - 1
    if isinstance(owner, tuple):
        whole = f"{path}={owner}".replace(" ", "")
        raise refusal(key, f"{path} is a tuple; give all of it, such as {whole}")
    if name.isdigit() and int(name) <= last:
        return
    if not owner:
        raise refusal(key, f"{path} is an empty list")
    if name.isdigit():
        raise refusal(key, f"{path} is a list of {len(owner)}, from {path}.0 to {path}.{last}")
    ends = list(dict.fromkeys(f"{path}.{i}.{key[len(path) + 1 :]}" for i in (0, last)))
    hint = ", or have hire-mlp data do it" if name == "num_classes" else ""
    raise refusal(key, f"{path} is a list of {len(owner)}: set each, {' to '.join(ends)}{hint}")


def check_new(cfg: Config, owner: Any, path: str, name: str, key: str) -> None:
    """Raise UserError where a key that the config does not have is a slip for one that is known."""
    taken = arguments_at(path, owner, cfg) if path else set()
    known = [one for one in {*owner, *taken} if differs(one, name)]
    near = difflib.get_close_matches(name, known, 1, NEAR)
    if near and name not in taken:
        where = describe_part(path, owner) if path else "the config"
        raise refusal(key, f"{where} has no {name!r}; did you mean {near[0]!r}?")


def differs(known: Any, name: str) -> bool:
    """Tell whether two keys differ by more than a number, as `layer1` and `layer2`."""
    return isinstance(known, str) and re.sub(r"\d", "", known) != re.sub(r"\d", "", name)


def fields_of(owner: Any, name: str) -> dict[str, Any] | None:
    """Return what None, or the name of HireMLP's arch, stands for as a dict; None of all else."""
    if owner[name] is None:
        return {}
    of_ours = name == "arch" and last_name(owner.get("type")) == "HireMLP"
    if not of_ours or not isinstance(owner[name], str):
        return None
    fields = dataclasses.asdict(resolve_arch(owner[name]))
    return {key: list(values) for key, values in fields.items()}
