"""Train and test as a library: load a config, harden it, run it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from torch import nn

from .. import mmcv_ops
from ..data.layout import SPLITS
from ..errors import UserError
from ..files import CURE
from ..registry import SCOPE
from .batches import one_line_errors
from .builds import misspelt_keys, named_faults
from .config import check_data, check_file, read_config
from .harden import harden
from .merging import merge_options
from .processes import join_processes_on_cpu
from .resume import has_checkpoint


def load_config(
    config: str,
    work_dir: str | None = None,
    options: dict[str, Any] | None = None,
    launcher: str = "none",
) -> Config:
    """Load a config with what a command line says besides.

    Args:
        config: a path, `PACKAGE::FILE`, or a recipe's `NAME`.
        work_dir: for logs and checkpoints; None for the config's, or `work_dirs/NAME`.
        options: values by their dotted keys, as `--cfg-options` takes them.
        launcher: of several processes: `none`, `pytorch`, `slurm` or `mpi`.

    Raises:
        UserError: there is no such file, it cannot be read, or an option does not fit it.
    """
    cfg = read_config(config)
    merge_options(cfg, options or {})
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get("work_dir") or f"work_dirs/{Path(cfg.filename).stem}"
    if Path(cfg.work_dir).is_file():
        raise UserError(f"work_dir {cfg.work_dir} is a file; name a folder")
    if cfg.default_scope == "mmpretrain":  # as its own tools do
        for split in SPLITS:
            if cfg.get(f"{split}_dataloader"):
                cfg[f"{split}_dataloader"].setdefault("collate_fn", dict(type="default_collate"))
    return cfg


def train(cfg: Config, resume: str | None = None) -> nn.Module:
    """Train as a config says, with every guarantee of `harden`.

    Args:
        cfg: with a `work_dir`; see `load_config`.
        resume: a checkpoint to go on from, or `auto` for the newest whole one of the work dir, if
            there are any; None for what the config says.

    Returns:
        The trained model.

    Raises:
        UserError: what can be put right: data, a checkpoint, the config, a full disk, NaN.
    """
    cfg = harden(cfg)
    if resume == "auto":
        # Where there is nothing to go on from, it begins with the weights that the config names.
        cfg.resume = has_checkpoint(cfg) or not cfg.get("load_from")
        cfg.load_from = None if cfg.resume else cfg.load_from
    elif resume is not None:
        cfg.resume, cfg.load_from = True, resume
    if cfg.get("load_from"):
        check_file(cfg.load_from, "checkpoint")
    check_data(cfg, ("train", "val"))
    try:
        runner = build_runner(cfg)
        with one_line_errors(runner), named_faults(cfg):
            return runner.train()
    except OSError as error:  # of logs and the like: a checkpoint's is a UserError
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{cfg.work_dir}: {error.strerror}; {CURE}") from error


def test(cfg: Config, checkpoint: str) -> dict[str, float]:
    """Test a checkpoint as a config says, with every guarantee of `harden`.

    Args:
        cfg: with a `work_dir`; see `load_config`.
        checkpoint: a path, a URL, or a name such as `hire-mlp://small`.

    Returns:
        The figures of the config's evaluator, by name.

    Raises:
        UserError: what can be put right: data, the checkpoint, the config.
    """
    cfg = harden(cfg)
    if "strategy" in cfg:  # for training alone; the plain runner tests its checkpoints
        cfg.pop("strategy")
        cfg.pop("runner_type", None)
    check_file(checkpoint, "checkpoint")
    check_data(cfg, ("test",))
    cfg.load_from, cfg.resume = checkpoint, False
    runner = build_runner(cfg)
    with one_line_errors(runner), named_faults(cfg):
        return runner.test()


def build_runner(cfg: Config) -> Any:
    """Build mmengine's runner of a hardened config, or raise UserError."""
    if cfg.launcher == "pytorch" and get_device() == "cpu":
        join_processes_on_cpu(cfg)
    cfg.setdefault("runner_type", f"{SCOPE}.{'FlexibleRunner' if 'strategy' in cfg else 'Runner'}")
    with one_line_errors(), named_faults(cfg):
        runner = RUNNERS.build(cfg)
    runner.logger.info(mmcv_ops.describe())
    for line in misspelt_keys(cfg):
        runner.logger.warning(line)
    return runner
