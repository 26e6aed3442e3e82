"""One replacement: the config that is being changed, and the list of its changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config, ConfigDict

from ..errors import UserError


class SwapError(UserError):
    """The config holds something that HireMLP cannot take the place of."""


@dataclass
class Swap:
    """One replacement of a backbone.

    Attributes:
        cfg: the new config.
        arch: of the HireMLP in it.
        network: the part of `cfg.model` that has the backbone.
        path: of the network in the config, such as `model.`.
        original: the network before.
        changes: a line for each.
    """

    cfg: Config
    arch: str
    network: ConfigDict
    path: str
    original: ConfigDict
    changes: list[str] = field(default_factory=list)

    def set(self, owner: ConfigDict, path: str, key: str, value: Any) -> None:
        """Set `owner[key]`, and note it if that changes anything."""
        old = brief(owner[key]) if key in owner else "not set"
        if owner.get(key) != value:
            owner[key] = value
            self.changes.append(f"{path}{key}: {old} -> {brief(value)}")

    @property
    def is_classifier(self) -> bool:
        """Tell whether the network reads one pooled vector per image."""
        return str(self.network.get("type")).split(".")[-1] == "ImageClassifier"

    @property
    def first_neck(self) -> ConfigDict:
        """Return the neck that reads the backbone; empty where there is none."""
        return next(iter(as_list(self.network.get("neck"))), ConfigDict())

    def text(self, source: str) -> str:
        """Write the new config: what was changed from `source`, then the whole of it."""
        head = [f"{source} with HireMLP in the place of its backbone, by hire-mlp swap."]
        head += ["", "Changed:", *indent(self.changes)]
        head += ["", "Kept: all else. For you to decide:", *indent(self.advice())]
        comment = "\n".join(f"# {line}".rstrip() for line in head)
        return f"{comment}\n\n{self.cfg.pretty_text}"

    def advice(self) -> list[str]:
        """Tell what a person may want to change next, and a swap does not."""
        optimizer = (self.cfg.get("optim_wrapper") or {}).get("optimizer") or {}
        kind, rate = optimizer.get("type"), optimizer.get("lr")
        if kind == "AdamW":
            lines = [f"optim_wrapper.optimizer: still AdamW, lr {rate}, of the old backbone"]
        else:
            lines = [
                f"optim_wrapper.optimizer: still {kind}, lr {rate}; Hire-MLP was trained with "
                "AdamW,",
                "    lr 1e-4 on COCO, lr 1.2e-4 and weight decay 0.01 on ADE20K",
            ]
        return [*lines, "param_scheduler: still the old backbone's"]


def indent(lines: Sequence[str]) -> Iterator[str]:
    """Set lines off from the one above them."""
    return (f"    {line}" for line in lines)


def brief(value: Any) -> str:
    """Write a value as the list of changes shows it."""
    if isinstance(value, dict) and "type" in value:
        checkpoint = value.get("checkpoint")
        return f"{value['type']}, {checkpoint}" if checkpoint else str(value["type"])
    return str(list(value) if isinstance(value, tuple) else value)


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, None as an empty one, anything else as a list of one."""
    return list(value) if is_list(value) else [] if value is None else [value]


def is_list(value: Any) -> bool:
    """Tell a list or tuple from anything else."""
    return isinstance(value, (list, tuple))
