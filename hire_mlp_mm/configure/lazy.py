"""Turn a config that names its classes by importing them into one that names them in words."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config

from ..doctor import HOSTS
from ..engine.builds import classes_of, parts_of
from ..engine.harden import name_of


def name_classes(cfg: Config) -> None:
    """Put the registered name in the place of each class or function that is a `type`.

    Args:
        cfg: is changed; one that names everything in words stays as it is. Without a
            `default_scope` it gets that of its model's class.
    """
    kind = cfg.model.get("type")
    package = name_of(kind).partition(".")[0] if kind is not None else ""
    if cfg.get("default_scope") is None and package in HOSTS:
        cfg.default_scope = package
    for _, part in [*parts_of(cfg)]:
        if callable(part.get("type")):
            part["type"] = registered_name(part["type"], cfg)


def registered_name(kind: Any, cfg: Config) -> str:
    """Return the name by which a config finds a class, or else the one by which Python does."""
    short = getattr(kind, "__name__", "")
    found = classes_of(dict(type=short), cfg) if short else []
    return short if kind in found else name_of(kind)
