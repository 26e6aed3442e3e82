"""Put a data set that lies in a folder into a config of a detector, segmentor or classifier."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from mmengine.config import Config

from ..data.layout import Hints, Layout
from ..data.read import read_layout
from ..engine.harden import last_name
from ..errors import UserError
from ..weights import WEIGHTS
from .beside import Beside
from .changes import Changes, Swap
from .classes import set_classes, task_of
from .lazy import name_classes
from .loaders import set_data
from .remains import guard_runs
from .schedule import Length, fit_schedule
from .sheet import draw_sheet
from .sizes import Size, set_size
from .sources import Source, find_sources
from .swap import find_network, make_swap, resize_backbone


@dataclass
class DataChange(Changes):
    """Hold a config that is given a data set.

    Attributes:
        layout: of the data set.
        beside: the files that have to be written beside the config.
        sources: where the config finds each split.
        length: of the training.
        swap: the change of the backbone, if there was one.
        size: width and height of the images, if they were set.
    """

    layout: Layout
    beside: Beside
    sources: dict[str, Source]
    length: Length
    swap: Swap | None
    size: Size | None

    def title(self) -> str:
        arch = f" and HireMLP {self.swap.arch}" if self.swap else ""
        return f"with the data of {self.layout.root.absolute()}{arch}, by hire-mlp data"

    @property
    def rate_is_for(self) -> int | None:
        """Return for how many images a step the learning rate is, if not for the config's."""
        base: int | None = (self.cfg.get("auto_scale_lr") or {}).get("base_batch_size")
        return None if base == self.cfg.train_dataloader.batch_size else base

    def advice(self) -> list[str]:
        cfg, lines = self.cfg, []
        if self.swap and last_name(self.swap.original.backbone.type) != "HireMLP":
            lines += self.swap.advice()
        backbone = cfg.model.get("backbone") or {}
        is_ours = last_name(backbone.get("type")) == "HireMLP"
        arch = backbone.get("arch", "small") if is_ours else None
        if self.swap is None and not backbone.get("init_cfg") and str(arch) in WEIGHTS:
            name = f"hire-mlp://{arch}"
            lines.append(f"model.backbone: no weights; --weights {name} names published ones")
        optimizer = (cfg.get("optim_wrapper") or {}).get("optimizer") or {}
        if self.rate_is_for:
            rate = f"optim_wrapper: lr {optimizer.get('lr')} is for {self.rate_is_for} images"
            batch = cfg.train_dataloader.batch_size
            lines.append(f"{rate} a step, not for {batch}: --auto-scale-lr fits it")
        lines.append(f"train_cfg: {self.length.text()}; --epochs N makes it another")
        kept = (
            "augmentations"
            if self.size
            else "sizes (--size WxH makes them others) and augmentations"
        )
        lines.append(f"pipelines: still the recipe's {kept}")
        if cfg.get("load_from"):
            lines.append(f"load_from: still {cfg.load_from}, whose heads are for other classes")
        return lines

    def write(self, source: str) -> list[Path]:
        """Write the config, the files that it needs, and a sheet of samples; all of them, or none.

        Args:
            source: the name of the old config, for the first line of the new one.

        Returns:
            The files and folders that were written, the config last.

        Raises:
            UserError: one of them is there already, or the data cannot be loaded as the config
                says.
        """
        self.beside.add("_data.png", lambda path: draw_sheet(self.cfg).save(path))
        text = self.text(source)
        self.beside.add(".py", lambda path: path.write_text(text, encoding="utf-8"))
        with self.beside.written():
            return list(self.beside.writes)


def use_data(
    cfg: Config,
    data: Layout | Path | str,
    hints: Hints | None = None,
    *,
    out: Path | str | None = None,
    arch: str | None = None,
    checkpoint: str | None = None,
    epochs: int | None = None,
    size: Size | None = None,
) -> Config:
    """Make a config that trains on a data set; the given config stays as it is.

    What a host cannot read as it lies (VOC XML, YOLO txt, masks of colours, a split that was
    drawn) is written beside `out`, never into the folder of the data.

    Args:
        cfg: a config of a detector, segmentor or classifier of MMDetection, MMSegmentation or
            MMPretrain.
        data: the folder, or what `read_layout` has understood of it.
        hints: what a person says of the folder.
        out: the config file after which the files beside it are named; None for
            `NAME_FOLDER.py`, here. It is not written itself.
        arch: `tiny`, `small`, `base` or `large`, to have HireMLP of this size as the backbone;
            None for the config's backbone.
        checkpoint: with an arch or a HireMLP, as `init_cfg` takes it; `none` for no weights, None
            for the published ones.
        epochs: how often to go through the images, with the schedule scaled in proportion; None
            for the config's length.
        size: width and height in pixels of the images of all three pipelines: what a detector
            resizes to, what the others crop; None for the config's.

    Returns:
        The new config, which can be dumped and trained.

    Raises:
        UserError: the data are not understood, the model cannot learn them, or a file that is to be
            written is there already.
    """
    change = make_data(
        cfg, data, hints, out=out, arch=arch, checkpoint=checkpoint, epochs=epochs, size=size
    )
    with change.beside.written():
        return change.cfg


def make_data(
    cfg: Config,
    data: Layout | Path | str,
    hints: Hints | None = None,
    *,
    out: Path | str | None = None,
    arch: str | None = None,
    checkpoint: str | None = None,
    epochs: int | None = None,
    size: Size | None = None,
) -> DataChange:
    """Do as `use_data` does, write nothing yet, and list the changes.

    Returns:
        The new config as `.cfg`, a line for each change as `.changes`, `.text(source)`, the text of
        a config file that says them in its first lines, and `.beside`, which writes the files that
        the config needs.
    """
    if epochs is not None and epochs < 1:
        raise UserError(f"--epochs {epochs}: expected 1 or more")
    cfg = copy.deepcopy(cfg)
    name_classes(cfg)
    task = task_of(cfg.model)
    folder = data.root if isinstance(data, Layout) else data
    layout = data if isinstance(data, Layout) else understand(Path(data), hints, task)
    beside = describe_beside(cfg, folder, out)
    swap = change_backbone(cfg, arch, checkpoint)
    change = Changes(swap.cfg, changes=swap.changes) if swap else Changes(cfg)
    guard_runs(change)
    set_classes(change, layout)
    sources = find_sources(layout, beside)
    set_data(change, layout, sources)
    if size is not None:
        set_size(change, layout.task, size)
    length = fit_schedule(change, len(sources["train"].names), epochs)
    lines = change.changes
    return DataChange(change.cfg, layout, beside, sources, length, swap, size, changes=lines)


def describe_beside(cfg: Config, folder: Path | str, out: Path | str | None) -> Beside:
    """Name the config that is to be written: `out`, or the old one's name and the folder's."""
    name = f"{Path(cfg.filename or 'config').stem}_{Path(folder).absolute().name}.py"
    return Beside(Path(out or name).absolute())


def understand(folder: Path, hints: Hints | None, task: str) -> Layout:
    """Understand the data set of a task that lies in a folder."""
    return read_layout(folder, replace(hints or Hints(), task=task))


def change_backbone(cfg: Config, arch: str | None, checkpoint: str | None) -> Swap | None:
    """Put HireMLP of an arch and with weights into a config; None where neither is named."""
    if arch is None and checkpoint is None:
        return None
    backbone = find_network(cfg.model)[0].backbone
    is_ours = last_name(backbone.type) == "HireMLP"
    arch = arch or (backbone.get("arch", "small") if is_ours else None)
    if arch is None:
        raise UserError(f"--weights {checkpoint}: expected --arch, too, for {backbone.type}")
    return (resize_backbone if is_ours else make_swap)(cfg, arch, checkpoint)
