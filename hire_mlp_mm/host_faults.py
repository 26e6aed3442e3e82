"""Mend faults of the hosts for which they offer no extension point: the one file of patches.

Each fault has a class or function here, which says what is wrong and in which releases, and a test
in test_host_faults.py that fails on the day when the host has mended it. Then it goes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.fileio import load
from mmengine.hub import hub
from mmengine.infer import BaseInferencer
from torch import nn
from torch.utils.data import DataLoader

from .files import give_name
from .registry import SCOPE

CONFIGS = Path(__file__).parent / ".mim" / "configs"
# Of the recipes of each host that mmengine's inferencers serve.
INDEXES = {"mmdet": "metafile_coco.yml", "mmseg": "metafile_ade20k.yml"}


def mend() -> None:
    """Let mmengine's configs, `mmengine.hub` and inferencers name our recipes.

    Importing the package calls this. Names of other packages are left to mmengine.
    """
    Config._get_cfg_path = staticmethod(base_path)
    hub._get_package_and_cfg_path = package_and_name
    BaseInferencer._get_models_from_metafile = staticmethod(models_in)


# Recipes by name ---------------------------------------------------------------------------------
# mmengine looks up `SCOPE::NAME` in OpenMMLab's own packages only, wants a folder in NAME, and
# gives the config that it finds the package's scope, in which there is no detector. (mmengine
# 0.10.7, onedl-mmengine 0.10.12.)

path_by_mmengine = Config._get_cfg_path
name_by_mmengine = hub._get_package_and_cfg_path


def base_path(base: str, filename: str) -> tuple[str, str | None]:
    """Return path and scope of a base that the config `filename` names."""
    package, _, name = base.partition("::")
    if package == SCOPE and name:
        return str(CONFIGS / name), None
    return path_by_mmengine(base, filename)


def package_and_name(config: str) -> tuple[str, str]:
    """Return a package and a name in it, for `mmengine.hub.get_config` to look up.

    Instead of the package this is a module: mmengine asks Python where that lies, which also finds
    editable installs.
    """
    package, _, name = config.partition("::")
    return (__name__, name) if package == SCOPE else name_by_mmengine(config)


# mmengine's inferencers look up the name of a model in the index of the host alone: mmdet's for
# `DetInferencer(model=NAME)`. (mmengine 0.10.7, onedl-mmengine 0.10.12.)

models_by_mmengine = BaseInferencer._get_models_from_metafile


def models_in(folder: str) -> Iterator[dict[str, Any]]:
    """Yield the index entries of our models for the host that lies in a folder, then the host's."""
    for host, index in INDEXES.items():
        if host in sys.modules and BaseInferencer._get_repo_or_mim_dir(host) == folder:
            for model in load(CONFIGS / index)["Models"]:
                config = str(CONFIGS.parent / model["Config"])
                yield {**model, "Config": config, "Weights": model.get("Weights")}
    yield from models_by_mmengine(folder)


# FSDP --------------------------------------------------------------------------------------------


class FSDPStrategyFaults:
    """Mend mmengine's FSDPStrategy in a class that derives from this one first.

    The strategy passes over its `sync_bn`. It cannot resume an optimizer with torch 2.1 or later,
    which changed the order of the arguments of `optim_state_dict_to_load`. It writes checkpoints in
    place, whatever file backend its hook names. (mmengine 0.10.7, onedl-mmengine 0.10.12.)
    """

    model: nn.Module
    optim_wrapper: Any
    state_dict_type: Any

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        host: Any = super()
        return host._wrap_model(host.convert_model(model))

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the optimizer's state; see `FSDPStrategy.load_optim_state_dict` of mmengine."""
        # Imported here, as not every build of torch has it.
        from torch.distributed.fsdp import FullyShardedDataParallel

        state = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model,
            optim=self.optim_wrapper.optimizer,
            optim_state_dict=state_dict,
        )
        self.optim_wrapper.load_state_dict(state)

    def save_checkpoint(self, filename: str, **options: Any) -> None:
        """Save a checkpoint, which has its name only when it is whole."""
        host: Any = super()
        if self.state_dict_type.name != "FULL_STATE_DICT":  # a folder, a file for each process
            host.save_checkpoint(filename, **options)
            return
        part = f"{filename}.part"
        host.save_checkpoint(part, **options)
        if is_main_process():
            give_name(Path(part), Path(filename))


# MMPretrain's PreciseBNHook ----------------------------------------------------------------------


def tell_batch_size(loader: DataLoader, batch_size: int) -> None:
    """Let a loader with a batch sampler say how large its batches are.

    MMPretrain's PreciseBNHook divides by `loader.batch_size`, which torch has as None beside a
    batch sampler, and refuses to set. (mmpretrain 1.2.0, onedl-mmpretrain 1.3.6.)
    """
    vars(loader)["batch_size"] = batch_size


# MMSegmentation's resize -------------------------------------------------------------------------


@contextmanager
def quiet_resize() -> Iterator[None]:
    """Keep MMSegmentation's `resize`, if it is imported, from advising on sizes.

    Where corners are aligned, its advice makes ints of the sizes, so that a trace holds for one
    size alone. Its argument `warning` turns the advice off, and its callers leave it on.
    (mmsegmentation 1.2.2, onedl-mmsegmentation 1.4.2.)
    """
    wrappers = sys.modules.get("mmseg.models.utils.wrappers")
    if wrappers is None:
        yield
        return
    defaults = wrappers.resize.__defaults__
    wrappers.resize.__defaults__ = (*defaults[:-1], False)  # the last is `warning`
    try:
        yield
    finally:
        wrappers.resize.__defaults__ = defaults
