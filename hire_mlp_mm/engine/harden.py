"""Put every guarantee of a run into a config of the three hosts: config in, config out."""

from __future__ import annotations

import copy
from typing import Any

from mmengine.config import Config, ConfigDict

from ..data.layout import SPLITS
from ..registry import SCOPE

LOOPS = ("EpochBasedTrainLoop", "IterBasedTrainLoop")
OF_WORKERS = ("persistent_workers", "prefetch_factor")
# In the order in which those of one priority are called.
HOOKS = (
    "PlaceHook",
    "LoadHook",
    "AgreementHook",
    "BatchHook",
    "FiniteHook",
    "FiniteCheckpointHook",
    "OneModelHook",
    "CatchUpHook",
)


def harden(cfg: Config | dict[str, Any]) -> Config:
    """Put all guarantees of this package into a config.

    With the result, anybody's `Runner.from_cfg(cfg).train()`

    - goes on after a crash (`resume=True`) and ends, on a CPU, with the weights of a run that was
      never ended, bit for bit; passes over damaged checkpoints; writes whole ones;
    - stops before NaN reaches the weights;
    - names the file of the data that is wrong;
    - reads checkpoints as data, and compares them with the model.

    docs/reliability.md says what holds where. All of the process that runs the result reads
    checkpoints as data, `torch.load` included.

    Args:
        cfg: of MMDetection, MMSegmentation or MMPretrain, with its `default_scope`; it is left as
            it is.

    Returns:
        A new config, which can be printed, dumped and hardened again without a change.

    Examples:
        >>> Runner.from_cfg(harden(Config.fromfile("mine.py"))).train()
    """
    cfg = copy.deepcopy(cfg) if isinstance(cfg, Config) else Config(copy.deepcopy(cfg))
    import_package(cfg)
    if isinstance(cfg.get("resume"), str):  # which mmengine's plain runner takes for True
        cfg.resume, cfg.load_from = True, cfg.resume
    for split in SPLITS:
        loader = cfg.get(f"{split}_dataloader")
        if isinstance(loader, dict):
            harden_loader(loader, training=split == "train")
        harden_evaluators(cfg.get(f"{split}_evaluator"))
    if isinstance(cfg.get("train_cfg"), dict):
        harden_loop(cfg.train_cfg)
    harden_hooks(cfg)
    return cfg


def import_package(cfg: Config) -> None:
    """Have the package imported by whoever reads the config."""
    imports = cfg.get("custom_imports") or {}
    names = imports.get("imports") or []
    names = [names] if isinstance(names, str) else list(names)
    if SCOPE not in names:
        allowed = bool(imports.get("allow_failed_imports", False))
        cfg.custom_imports = dict(imports=[*names, SCOPE], allow_failed_imports=allowed)


def ours(part: Any) -> bool:
    """Tell whether a part of a config is of this package."""
    return bool(part) and str(part.get("type", "")).startswith(f"{SCOPE}.")


def name_of(kind: Any) -> str:
    """Return the name by which a class is found, where a config has the class itself."""
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def last_name(kind: Any) -> str:
    """Return the name of a class without its scope, where a config has the class itself, too."""
    return str(getattr(kind, "__name__", kind or "")).rpartition(".")[2]


def harden_loader(loader: ConfigDict, training: bool) -> None:
    """Have a data loader's files checked, its batches placed, and its workers end with it."""
    if isinstance(loader.get("dataset"), dict):
        harden_dataset(loader.dataset)
    if not loader.get("num_workers"):
        for key in OF_WORKERS:  # which torch refuses where there are none
            loader.pop(key, None)
    then = loader.get("worker_init_fn")
    if not ours(then):
        loader.worker_init_fn = dict(type=f"{SCOPE}.start_worker")
        if then:
            loader.worker_init_fn.then = then
        if loader.pop("disable_subprocess_warning", False):
            loader.worker_init_fn.quiet = True
    batches = loader.get("batch_sampler")
    if training and isinstance(loader.get("sampler"), dict) and not ours(batches):
        loader.batch_sampler = dict(type=f"{SCOPE}.PlacedBatchSampler")
        if batches:
            loader.batch_sampler.batch_sampler = batches
        elif loader.pop("drop_last", False):
            loader.batch_sampler.drop_last = True


def harden_dataset(dataset: ConfigDict) -> None:
    """Have the data sets that read files guarded, within concatenated, repeated and mixed ones."""
    parts = [dataset.get("dataset"), *(dataset.get("datasets") or ())]
    inner = [part for part in parts if isinstance(part, dict)]
    for part in inner:
        harden_dataset(part)
    # A class that is made within a function cannot be found by a name.
    if not inner and "type" in dataset and not ours(dataset) and "<" not in name_of(dataset.type):
        dataset.type = f"{SCOPE}.{name_of(dataset.type)}"


def harden_evaluators(evaluators: Any) -> None:
    """Have the annotation files of metrics named where they cannot be read."""
    for part in evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]:
        if isinstance(part, dict) and "metrics" in part:
            harden_evaluators(part["metrics"])
        elif isinstance(part, dict) and part.get("ann_file") and not ours(part):
            part["type"] = f"{SCOPE}.{name_of(part['type'])}"


def harden_loop(train_cfg: ConfigDict) -> None:
    """Have a training begin its data where its checkpoint was."""
    by_epoch = train_cfg.pop("by_epoch", True)
    kind = train_cfg.get("type") or (LOOPS[0] if by_epoch else LOOPS[1])
    name = last_name(kind)
    # Another loop (of a host, or the user's) goes its own way: its data begin anew.
    train_cfg.type = f"{SCOPE}.{name}" if name in LOOPS else kind


def harden_hooks(cfg: Config) -> None:
    """Put this package's hooks into a config."""
    if not cfg.get("default_hooks"):
        cfg.default_hooks = ConfigDict()
    cfg.default_hooks.setdefault("checkpoint", ConfigDict(type="CheckpointHook", interval=1))
    hooks = list(cfg.get("custom_hooks") or ())
    given = [hook for hook in [*cfg.default_hooks.values(), *hooks] if isinstance(hook, dict)]
    for hook in given:
        if last_name(hook.get("type")) == "CheckpointHook":
            hook["type"] = f"{SCOPE}.CheckpointHook"
    types = [hook.get("type") for hook in given]
    names = [f"{SCOPE}.{name}" for name in HOOKS]
    cfg.custom_hooks = [*hooks, *(ConfigDict(type=name) for name in names if name not in types)]
