"""Find and read a config, and look for the files and data that it names."""

from __future__ import annotations

import contextlib
import copy
import difflib
import glob
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
from .harden import last_name

NOTE = "last_checkpoint"  # mmengine's, in a work dir: the path of the newest checkpoint
MOST = 4  # missing paths that one line names

# Data sets of MMPretrain that fetch themselves where they are missing: the side of their images in
# pixels, which they give without a step that loads them.
DOWNLOADING = {"CIFAR10": 32, "CIFAR100": 32, "MNIST": 28, "FashionMNIST": 28}


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
    except (Exception, SystemExit) as error:  # a config is a program
        raise UserError(f"config {name} cannot be read: {describe(error)}") from error
    if "model" not in cfg or "default_scope" not in cfg:
        raise UserError(f"config {name} has no model or no default_scope")
    return cfg


def check_file(path: str, what: str) -> None:
    """Raise UserError unless a local file is there; URLs and names of weights pass."""
    if os.path.isdir(path):
        inside = newest_checkpoint(path)
        hint = f"name a file in it, such as {inside}" if inside else "it has no .pth file"
        raise UserError(f"{what} {path} is a folder; {hint}")
    if "://" not in path and not os.path.isfile(path):
        raise UserError(f"{what} {path} not found")


def newest_checkpoint(folder: str) -> str | None:
    """Return the checkpoint that a folder's note names, or else the one written there last."""
    noted = read_note(folder)
    # The folder may have been moved since the note was written.
    for path in (os.path.join(folder, os.path.basename(noted)), noted) if noted else ():
        if os.path.isfile(path):
            return path
    found = glob.glob(os.path.join(glob.escape(folder), "*.pth"))
    return max(found, key=os.path.getmtime, default=None)


def read_note(work_dir: str) -> str | None:
    """Read the path in a work dir's note of its newest checkpoint, if there is such a note."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(work_dir, NOTE).read_text(encoding="utf-8").strip("\0 \n") or None
    return None


# Data -------------------------------------------------------------------------------------------


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Raise UserError where data of `splits` (`train`, `val`, `test`) are missing.

    The line names what is missing, where in the config it stands, and what to set: the variable
    that made the path, or else its key.
    """
    missing: list[tuple[str, str, str]] = []
    for key in (f"{split}_{part}" for split in splits for part in ("dataloader", "evaluator")):
        gone = None  # a data set whose folder is missing, and with it all in it
        for path, what, place in data_paths(cfg.get(key), key):
            if os.path.exists(path) or (gone and place.startswith(gone)):
                continue
            missing.append((path, what, place))
            gone = place.removesuffix("data_root") if place.endswith(".data_root") else gone
    if missing:
        raise UserError(missing_data(cfg, missing))


def missing_data(cfg: Config, missing: list[tuple[str, str, str]]) -> str:
    """Write the line about data, of each (path, what it is, its key), that are missing."""
    values = variables(cfg)
    names: dict[str, None] = {}  # in order, each once
    keys: list[str] = []
    places: dict[str, dict[str, None]] = {}
    roots = tuple(path for path, _, key in missing if key.endswith(".data_root"))
    for path, what, key in missing:
        name = maker(path, values)
        if name and path.startswith(roots) and path not in roots:
            continue  # the variable that is to be set makes it, too
        if name:
            names[f"{name} (now {values[name]})" if name in cfg.env_variables else name] = None
        else:
            keys.append(f"{key}=...")
        places.setdefault(f"{what} {path}", {})[key.partition(".")[0]] = None
    said = [f"{path} not found (in {', '.join(where)})" for path, where in places.items()]
    more = f" and {len(said) - MOST} more" if len(said) > MOST else ""
    cures = [f"set {' and '.join(names)}"] if names else []
    cures += [f"add --cfg-options {' '.join(keys)}"] if keys else []
    return f"{', '.join(said[:MOST])}{more}; {', and '.join(cures)}"


def nested(dataset: Any, key: str = "") -> Iterator[tuple[Any, str]]:
    """Yield (part, key) of a config's data set, of the first one within it, and so on."""
    while isinstance(dataset, dict):
        yield dataset, key
        several = dataset.get("datasets")
        name = "datasets.0" if several else "dataset"
        dataset, key = several[0] if several else dataset.get("dataset"), f"{key}.{name}"


def innermost(dataset: Any) -> Any:
    """Return the data set that reads files, within those that repeat, mix or join it."""
    return [part for part, _ in nested(dataset)][-1]


def model_of(cfg: Config) -> Any:
    """Copy the part of a config that makes the model, with all that mmengine's runner adds."""
    model = copy.deepcopy(cfg.model)
    if cfg.get("data_preprocessor"):
        model.setdefault("data_preprocessor", copy.deepcopy(cfg.data_preprocessor))
    return model


def variables(cfg: Config) -> dict[str, str]:
    """Return the variables of the environment that a config reads, each with its value there."""
    named = re.findall(r"\{\{['\"]?\s*\$(\w+)\s*:\s*(\S*?)\s*['\"]?\}\}", cfg.text)
    return {name: cfg.env_variables.get(name, default) for name, default in named}


def maker(path: str, values: dict[str, str]) -> str | None:
    """Name the variable whose value a path begins with; None where it was made without one."""
    folders = {name: value.rstrip("/") for name, value in values.items() if value.strip("./")}
    begun = [name for name, folder in folders.items() if f"{path}/".startswith(f"{folder}/")]
    return max(begun, key=lambda name: len(folders[name]), default=None)


def data_paths(part: Any, key: str) -> Iterator[tuple[str, str, str]]:
    """Yield (path, what it is, its key) of each local file and folder of the data at `key`."""
    if isinstance(part, (list, tuple)):
        part = dict(enumerate(part))
    if not isinstance(part, dict):
        return
    for name, inner in part.items():
        yield from data_paths(inner, f"{key}.{name}")
    kind = last_name(part.get("type"))  # guarded or not
    root, annotations = part.get("data_root") or "", part.get("ann_file") or ""
    for name, path in (("data_root", root), ("ann_file", annotations)):
        if not isinstance(path, str):
            raise UserError(
                f"{key}.{name} is a {type(path).__name__}; expected one path: for several files, "
                f"a ConcatDataset whose datasets have one each"
            )
    elsewhere = part.get("backend_args") and "evaluator" not in key  # a metric reads locally
    if kind in DOWNLOADING or elsewhere or "://" in root or "://" in annotations:
        return
    if root:
        yield root, "data set folder", f"{key}.data_root"
    if annotations:
        yield os.path.join(root, annotations), "annotation file", f"{key}.ann_file"
    prefixes: Any = part.get("data_prefix") or {}
    if kind == "ImageNet" and not prefixes:
        prefixes = dict(split=part.get("split"))
    elif isinstance(prefixes, dict):
        prefixes = {f"data_prefix.{name}": prefix for name, prefix in prefixes.items()}
    else:
        prefixes = dict(data_prefix=prefixes)
    for name, prefix in prefixes.items():
        if prefix:
            yield os.path.join(root, prefix), "data folder", f"{key}.{name}"
