"""Find and read a config, and look for the data that it names."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import UserError, describe
from ..host_faults import CONFIGS
from ..registry import SCOPE

# Data sets of MMPretrain that fetch themselves where they are missing.
DOWNLOADING = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST")


def find_config(name: str) -> Path:
    """Find a config by its path, `PACKAGE::FILE`, or the name of a recipe of ours."""
    path = Path(name)
    if path.is_file():
        return path
    package, colons, inside = name.partition("::")
    if not colons and path.name != name:
        is_recipe = (CONFIGS / f"{path.stem}.py").is_file()
        hint = f"; the recipe of that name is called {path.stem}, without a folder"
        raise UserError(f"config {name} not found{hint if is_recipe else ''}")
    if not colons:
        package, inside = SCOPE, f"{name.removesuffix('.py')}.py"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"config {name}: no package {package} is installed")
    root = Path(spec.submodule_search_locations[0], ".mim", "configs")
    if (root / inside).is_file():
        return root / inside
    known = {p.stem: p.relative_to(root) for p in root.rglob("*.py") if p.parent.name != "_base_"}
    near = difflib.get_close_matches(Path(inside).stem, known, 3, 0.5)
    hint = f"; near it: {', '.join(str(known[stem]) for stem in near)}" if near else ""
    where = f" in {package}" if colons else ", nor a recipe of that name"
    raise UserError(f"config {name} not found{where}{hint}")


def read_config(name: str) -> Config:
    """Read a config of a model that `find_config` finds, or raise UserError."""
    path = find_config(name)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program
        raise UserError(f"config {name} cannot be read: {describe(error)}") from error
    if "model" not in cfg or "default_scope" not in cfg:
        raise UserError(f"config {name} has no model or no default_scope")
    return cfg


def check_file(path: str, what: str) -> None:
    """Raise UserError unless a local file is there; URLs and names of weights pass."""
    if "://" not in path and not os.path.isfile(path):
        raise UserError(f"{what} {path} not found")


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Raise UserError where data of `splits` (`train`, `val`, `test`) are missing.

    It names the first path that is missing, and what to set: a variable that the config reads, or
    else the keys of this path and of the first of each other loader and evaluator.
    """
    missing = []
    for key in (f"{split}_{part}" for split in splits for part in ("dataloader", "evaluator")):
        part = cfg.get(key)
        parts = enumerate(part) if isinstance(part, (list, tuple)) else [(None, part)]
        for i, one in parts:  # of evaluators there may be a list
            paths = data_paths(one, key if i is None else f"{key}.{i}")
            missing += [found for found in paths if not os.path.exists(found[0])][:1]
    if missing:
        variables = sorted(set(re.findall(r"\{\{\s*\$(\w+):", cfg.text)))
        keys = " ".join(f"{key}=..." for _, _, key in missing)
        cure = f"set {' or '.join(variables)}" if variables else f"add --cfg-options {keys}"
        path, what, key = missing[0]
        raise UserError(f"{what} {path} not found (in {key.partition('.')[0]}); {cure}")


def data_paths(part: Any, key: str) -> Iterator[tuple[str, str, str]]:
    """Yield (path, what it is, its key) of each local file and folder of the data at `key`."""
    if isinstance(part, (list, tuple)):
        part = dict(enumerate(part))
    if not isinstance(part, dict):
        return
    for name, inner in part.items():
        yield from data_paths(inner, f"{key}.{name}")
    kind = str(part.get("type")).rpartition(".")[2]  # guarded or not
    root, annotations = part.get("data_root") or "", part.get("ann_file") or ""
    elsewhere = part.get("backend_args") and "evaluator" not in key  # a metric reads locally
    if kind in DOWNLOADING or elsewhere or "://" in root or "://" in annotations:
        return
    if root:
        yield root, "data set folder", f"{key}.data_root"
    if annotations:
        yield os.path.join(root, annotations), "annotation file", f"{key}.ann_file"
    prefixes: Any = part.get("data_prefix") or {}
    if kind == "ImageNet" and not prefixes:
        prefixes = part.get("split") or {}
    for prefix in prefixes.values() if isinstance(prefixes, dict) else [prefixes]:
        if prefix:
            yield os.path.join(root, prefix), "data folder", f"{key}.data_prefix"
