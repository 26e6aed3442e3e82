"""Hold a config that is being changed, and its changes: of a backbone, or of the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config, ConfigDict

from ..engine.harden import last_name
from ..errors import UserError

# Of the authors' trainings, by the scope of a config.
RATES = dict(
    mmdet="lr 1e-4 on COCO, for batches of 16",
    mmseg="lr 1.2e-4 and weight decay 0.01 on ADE20K, for batches of 32",
    mmpretrain="lr 1e-3 and weight decay 0.05 on ImageNet, for batches of 1024",
)


class SwapError(UserError):
    """Report something in a config that HireMLP cannot take the place of."""


@dataclass
class Changes:
    """Hold a config that is being changed, and its changes."""

    cfg: Config  # the new one
    changes: list[str] = field(default_factory=list, kw_only=True)  # a line for each

    def set(self, owner: ConfigDict | Config, path: str, key: str, value: Any) -> None:
        """Set `owner[key]`, and note a change if it is one."""
        old = brief(owner[key]) if key in owner else "not set"
        if owner.get(key) != value:
            owner[key] = value
            self.changes.append(f"{path}{key}: {old} -> {brief(value)}")

    def text(self, source: str) -> str:
        """Write the new config: its changes from `source` as a comment, then the whole of it."""
        head = f"{source} {self.title()}.\n\n"
        head += "\n    ".join(["Changed:", *self.changes]) + "\n\n"
        head += "\n    ".join(["Kept: all else. For you to decide:", *self.advice()])
        comment = "\n".join(f"# {line}".rstrip() for line in head.split("\n"))
        return f"{comment}\n\n{self.cfg.pretty_text}"

    def title(self) -> str:
        """Say what was done to the config, for a line that begins with the config's name."""
        raise NotImplementedError

    def advice(self) -> list[str]:
        """List what is left as it was, and a person may want to change next."""
        raise NotImplementedError


@dataclass
class Swap(Changes):
    """Hold one replacement of a backbone."""

    arch: str  # of the HireMLP in it
    network: ConfigDict  # the part of `cfg.model` that has the backbone
    path: str  # of the network in the config, such as `model.`
    original: ConfigDict  # the network before

    @property
    def is_classifier(self) -> bool:
        """Tell whether the network reads one pooled vector per image."""
        return last_name(self.network.get("type")) == "ImageClassifier"

    @property
    def keeps_strides(self) -> bool:
        """Tell whether the heads count on the strides of the maps, as for boxes and heat maps."""
        return self.cfg.default_scope not in ("mmseg", "mmpretrain")

    @property
    def first_neck(self) -> ConfigDict:
        """Return the neck that reads the backbone; empty where there is none."""
        return next(iter(as_list(self.network.get("neck"))), ConfigDict())

    def title(self) -> str:
        return "with HireMLP in the place of its backbone, by hire-mlp swap"

    def advice(self) -> list[str]:
        optimizer = (self.cfg.get("optim_wrapper") or {}).get("optimizer") or {}
        kind, rate = optimizer.get("type"), optimizer.get("lr")
        lines = [f"optim_wrapper.optimizer: still {kind}, lr {rate}, of the old backbone"]
        if kind != "AdamW":
            lines = [
                f"optim_wrapper.optimizer: still {kind}, lr {rate}; Hire-MLP was trained with "
                "AdamW,",
                f"    {RATES.get(self.cfg.default_scope, RATES['mmdet'])}",
            ]
        return [*lines, "param_scheduler: still the old backbone's"]


def brief(value: Any) -> str:
    """Write a value as the list of changes shows it."""
    if isinstance(value, dict) and "type" in value:
        return ", ".join(str(value[key]) for key in ("type", "checkpoint") if value.get(key))
    return str(list(value) if isinstance(value, tuple) else value)


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, None as an empty one, anything else as a list of one."""
    return list(value) if is_list(value) else [] if value is None else [value]


def is_list(value: Any) -> bool:
    """Tell a list or tuple from anything else."""
    return isinstance(value, (list, tuple))
