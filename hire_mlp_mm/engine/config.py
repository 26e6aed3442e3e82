"""Configs by path or name, and the data that they name."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ..errors import UserError, describe
from ..registry import SCOPE

# Data sets of MMPretrain that fetch themselves where they are missing.
DOWNLOADING = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST")


def find_config(name: str) -> Path:
    """Find the file of a config.

    Args:
        name: a path; `PACKAGE::FILE`, of an installed package's configs; or a recipe of ours,
            `NAME` or `NAME.py`.

    Raises:
        UserError: no such package or file; names the nearest ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    package, colons, inside = name.partition("::")
    if not colons:
        if path.name != name:
            raise UserError(f"config {name} not found{recipe_called(path.stem)}")
        package, inside = SCOPE, name if name.endswith(".py") else f"{name}.py"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"config {name}: no package {package} is installed")
    root = Path(next(iter(spec.submodule_search_locations)), ".mim", "configs")
    if (root / inside).is_file():
        return root / inside
    known = {p.stem: p.relative_to(root) for p in root.rglob("*.py") if p.parent.name != "_base_"}
    near = difflib.get_close_matches(Path(inside).stem, known, 3, 0.5)
    hint = f"; near it: {', '.join(str(known[one]) for one in near)}" if near else ""
    where = f" in {package}" if colons else ", nor a recipe of that name"
    raise UserError(f"config {name} not found{where}{hint}")


def recipe_called(stem: str) -> str:
    """Say how a recipe is named where no checkout is; nothing where there is none of that name."""
    spec = importlib.util.find_spec(SCOPE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if Path(folder, ".mim", "configs", f"{stem}.py").is_file():
            return f"; the recipe of that name is called {stem}, without a folder"
    return ""


def read_config(name: str) -> Config:
    """Read a config of a model.

    Args:
        name: as `find_config` takes it.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not of a model.
    """
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
    """Look for the data sets and annotations of `splits` (`train`, `val`, `test`).

    Raises:
        UserError: names the first path that is missing, and what to set: a variable that the
            config reads, or else the key of this path and of the first of each other part.
    """
    missing = []
    for split in splits:
        loader, evaluators = cfg.get(f"{split}_dataloader"), cfg.get(f"{split}_evaluator")
        parts = [data_paths(loader.dataset, f"{split}_dataloader.dataset")] if loader else []
        if isinstance(evaluators, dict) and "metrics" in evaluators:
            evaluators = evaluators["metrics"]
        for evaluator, key in numbered(evaluators, f"{split}_evaluator"):
            path = evaluator.get("ann_file")
            if path and "://" not in path:
                parts.append(iter([(path, "annotation file", f"{key}.ann_file")]))
        for part in parts:
            missing += [one for one in part if not os.path.exists(one[0])][:1]
    if missing:
        variables = sorted(set(re.findall(r"\{\{\s*\$(\w+):", cfg.text)))
        keys = " ".join(f"{key}=..." for _, _, key in missing)
        cure = f"set {' or '.join(variables)}" if variables else f"add --cfg-options {keys}"
        path, what, key = missing[0]
        raise UserError(f"{what} {path} not found (in {key.partition('.')[0]}); {cure}")


def numbered(value: Any, key: str) -> Iterator[tuple[ConfigDict, str]]:
    """Yield (part, its key) where the config has a part or a list of parts at `key`."""
    if isinstance(value, dict):
        yield value, key
        return
    for i, part in enumerate(value or ()):
        yield part, f"{key}.{i}"


def data_paths(dataset: ConfigDict, key: str) -> Iterator[tuple[str, str, str]]:
    """Yield (path, what it is, its key) of each local file and folder of the data set at `key`."""
    for name in ("datasets", "dataset"):
        for inner, inner_key in numbered(dataset.get(name), f"{key}.{name}"):
            yield from data_paths(inner, inner_key)
    if dataset.get("datasets") or dataset.get("dataset"):
        return
    kind = str(dataset.get("type")).rpartition(".")[2]  # guarded or not
    if kind in DOWNLOADING:
        return
    root = dataset.get("data_root") or ""
    if "://" in root or dataset.get("backend_args"):
        return
    if root:
        yield root, "data set folder", f"{key}.data_root"
    if dataset.get("ann_file"):
        yield os.path.join(root, dataset.ann_file), "annotation file", f"{key}.ann_file"
    prefixes: Any = dataset.get("data_prefix") or {}
    if kind == "ImageNet" and not prefixes:
        prefixes = dataset.get("split") or {}
    for prefix in prefixes.values() if isinstance(prefixes, dict) else [prefixes]:
        if prefix:
            yield os.path.join(root, prefix), "data folder", f"{key}.data_prefix"
