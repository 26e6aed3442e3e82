"""What `train.py` and `test.py` share: the config, checks before the run, errors for people."""

from __future__ import annotations

import argparse
import copy
import ctypes
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The tools run from a checkout as they stand, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from _loading import CheckpointCheck, guard_loading
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import Runner

from hire_mlp_mm import mmcv_ops  # before mmdet is imported, which needs mmcv's ops
from hire_mlp_mm.checkpoint import CheckpointError, first_line

# Errors whose message is a line for the user, raised before or while the run starts.
USER_ERRORS = (CheckpointError, FileNotFoundError, mmcv_ops.MissingOpError)

# Data sets of MMPretrain that fetch themselves where they are missing.
DOWNLOADING = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST")


class UserError(Exception):
    """Something the user can put right; the message is one line.

    Attributes:
        shared: all processes of a run come upon it, so that one of them says it for all.
    """

    shared = True


def make_parser(description: str) -> argparse.ArgumentParser:
    """The options that training and testing share, as MMDetection's users know them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder for logs and results (default: work_dirs/NAME)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="override settings of the config, such as model.backbone.init_cfg=None",
    )
    parser.add_argument(
        "--compile-backbone",
        action="store_true",
        help="compile the backbone's blocks; for training on crops of one size, as every height "
        "takes graphs of its own there",
    )
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="hand maps on with their channels last in memory, to neck and heads, too",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser


def run(main: Callable[[], None]) -> None:
    """Run a tool; an error that the user can put right is one line and exit code 2."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    try:
        main()
        leave_process_group()
    except (UserError, *USER_ERRORS) as error:
        local_rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
        if local_rank == "0" or not getattr(error, "shared", True):  # once on each machine
            # FileNotFoundError by the interpreter carries its path apart from its message; one
            # from a data loader's worker carries the worker's traceback before its message.
            path = getattr(error, "filename", None)
            text = f"{path} not found" if path else str(error).strip().splitlines()[-1]
            print(f"{Path(sys.argv[0]).name}: error: {text}", file=sys.stderr)
        if torch.distributed.is_initialized():
            leave_at_once(2)
        sys.exit(2)
    except Exception:
        if not torch.distributed.is_initialized():
            raise
        sys.excepthook(*sys.exc_info())
        leave_at_once(1)


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone.

    An agent of torchrun that is killed would leave its processes running, unnoticed by the other
    machines; and a training its processes that load data. Linux only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def leave_process_group() -> None:
    """End a process of several whose work is done."""
    if not torch.distributed.is_initialized():
        return
    if torch.distributed.get_backend() != "gloo":
        torch.distributed.destroy_process_group()
        return
    # Now and then gloo's threads abort a process that is being taken down in order ("terminate
    # called without an active exception"), and its launcher reports a failure.
    torch.distributed.barrier()
    leave_at_once(0)


def leave_at_once(code: int) -> None:
    """End a process of several, not taken down in order, with what it has said.

    In order, it may wait for minutes for what others would have sent that are gone.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def describe(error: Exception) -> str:
    """Kind and first line of somebody else's error."""
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def read_config(path: str) -> Config:
    """The config of a file.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not of a model.
    """
    if not os.path.isfile(path):
        raise UserError(f"config {path} not found")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program
        raise UserError(f"config {path} cannot be read: {describe(error)}") from error
    if "model" not in cfg or "default_scope" not in cfg:
        raise UserError(f"config {path} has no model or no default_scope")
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """The config file with the command line's options merged in.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if "LOCAL_RANK" not in os.environ:
        os.environ["LOCAL_RANK"] = str(args.local_rank)
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or f"work_dirs/{Path(args.config).stem}"
    if cfg.default_scope == "mmpretrain":
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            if cfg.get(loader):
                cfg[loader].setdefault("collate_fn", dict(type="default_collate"))
    return cfg


def build_runner(cfg: Config, whole: bool = False) -> Runner:
    """Mmengine's runner of a config, its log opened with the line that says which ops mmcv has.

    Args:
        cfg: the config.
        whole: a checkpoint has to have every tensor of the model, not the backbone's alone.

    Raises:
        UserError: the model, or what belongs to it, cannot be built.
    """
    guard_loading()
    if cfg.launcher == "pytorch" and get_device() == "cpu":
        join_processes_on_cpu(cfg)
    with build_errors():
        if "runner_type" in cfg:
            runner = RUNNERS.build(cfg)
            # Once a strategy has it, each process may hold a part of the model alone.
            check = CheckpointCheck(whole, MODELS.build(copy.deepcopy(cfg.model)).to("meta"))
        else:
            runner = Runner.from_cfg(cfg)
            check = CheckpointCheck(whole)
    runner.register_hook(check)
    runner.logger.info(mmcv_ops.describe())
    return runner


@contextmanager
def build_errors() -> Iterator[None]:
    """End with a line for people where a class refuses what the config has for it.

    Raises:
        UserError: in place of the error, whose traceback is printed: the class may be at fault.
    """
    try:
        yield
    except (UserError, OSError, *USER_ERRORS):
        raise
    except Exception as error:
        traceback.print_exc()
        raise UserError(f"what the config describes cannot be built: {describe(error)}") from error


def join_processes_on_cpu(cfg: Config) -> None:
    """Start torch.distributed on the CPU, for which mmengine's launchers want a GPU."""
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    cfg.sync_bn = None  # torch has SyncBN for GPUs only
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel",
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )


def check_file(path: str, what: str) -> None:
    """Raise UserError unless a local file is there; URLs pass."""
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
    """(part, its key) where the config has a part or a list of parts at `key`, or nothing."""
    if isinstance(value, dict):
        yield value, key
        return
    for i, part in enumerate(value or ()):
        yield part, f"{key}.{i}"


def data_paths(dataset: ConfigDict, key: str) -> Iterator[tuple[str, str, str]]:
    """(path, what it is, its key) of each local file and folder of the data set at `key`."""
    for name in ("datasets", "dataset"):
        for inner, inner_key in numbered(dataset.get(name), f"{key}.{name}"):
            yield from data_paths(inner, inner_key)
    if dataset.get("datasets") or dataset.get("dataset"):
        return
    if dataset.get("type") in DOWNLOADING:
        return
    root = dataset.get("data_root") or ""
    if "://" in root or dataset.get("backend_args"):
        return
    if root:
        yield root, "data set folder", f"{key}.data_root"
    if dataset.get("ann_file"):
        yield os.path.join(root, dataset.ann_file), "annotation file", f"{key}.ann_file"
    prefixes: Any = dataset.get("data_prefix") or {}
    if dataset.get("type") == "ImageNet" and not prefixes:
        prefixes = dataset.get("split") or {}
    for prefix in prefixes.values() if isinstance(prefixes, dict) else [prefixes]:
        if prefix:
            yield os.path.join(root, prefix), "data folder", f"{key}.data_prefix"
