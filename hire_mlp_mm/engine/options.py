"""Put the options of training and testing into a config, and change nothing else."""

from __future__ import annotations

import os
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device

from ..disk import check_new_folder
from ..errors import UserError
from ..registry import SCOPE
from .forms import half_type
from .harden import last_name
from .resume import has_checkpoint

SCALING = "AmpOptimWrapper"


def scale_losses(cfg: Config, dtype: str) -> None:
    """Have a training in mixed precision (see `half_type`) scale its losses where it has to.

    bfloat16 has the range of float32: without mmengine's scaler, which refuses CPUs, an infinite
    gradient is a fault, and stops the training.

    Raises:
        UserError: float16 on a CPU.
    """
    wrapper = cfg.optim_wrapper
    if half_type(dtype, get_device()) == torch.float16:
        wrapper.type, wrapper.dtype = SCALING, "float16"
        wrapper.setdefault("loss_scale", "dynamic")
    elif last_name(wrapper.get("type")) == SCALING:
        wrapper.type = "OptimWrapper"
        for key in ("loss_scale", "dtype", "use_fsdp"):
            wrapper.pop(key, None)


def scale_lr(cfg: Config) -> None:
    """Have the learning rate scaled by the batch size over the one that the config names."""
    if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
        raise UserError(f"--auto-scale-lr: {cfg.filename} has no auto_scale_lr.base_batch_size")
    cfg.auto_scale_lr.enable = True


def check_processes(cfg: Config) -> None:
    """Raise UserError where a config divides the model, and there is one process alone."""
    if "FSDP" in cfg.get("strategy", {}).get("type", "") and cfg.launcher == "none":
        raise UserError(
            f"{cfg.filename} divides the model among several processes; "
            f"start them by tools/dist_train.sh"
        )


def refuse_used(cfg: Config) -> None:
    """Raise UserError where the work dir holds a training, which a new one would write over."""
    if has_checkpoint(cfg):
        raise UserError(
            f"{cfg.work_dir} holds a training already: --resume goes on with it, --work-dir DIR "
            "begins another"
        )


def use_form(cfg: Config, *, training: bool = False, **options: Any) -> None:
    """Have the model run in another form, and no longer in one that the config has for it.

    Args:
        cfg: is changed, if there are options.
        training: as of `FormHook`, like the options.
        options: true ones count.
    """
    chosen = {key: value for key, value in options.items() if value}
    if chosen:
        kind = f"{SCOPE}.FormHook"
        hooks = cfg.get("custom_hooks") or ()
        others = [h for h in hooks if (h.get("type"), h.get("training", False)) != (kind, training)]
        cfg.custom_hooks = [*others, ConfigDict(type=kind, training=training, **chosen)]


def draw_predictions(cfg: Config, folder: str) -> None:
    """Have every prediction of a test drawn beside its ground truth into a new folder."""
    from ..data.palette import VISUALIZER_OF

    check_new_folder(folder, "--show-dir")
    if not cfg.get("visualizer"):
        cfg.visualizer = ConfigDict(type=VISUALIZER_OF[cfg.default_scope])
    given = (cfg.get("default_hooks") or {}).get("visualization") or {}
    kept = {key: given[key] for key in ("score_thr", "backend_args") if key in given}
    hook = ConfigDict(type=f"{SCOPE}.PicturesHook", folder=os.path.abspath(folder), **kept)
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or ()), hook]


def augment_tests(cfg: Config) -> None:
    """Wrap the model and the data for test-time augmentation, as the config has it."""
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        raise UserError("--tta: the config has no tta_model and tta_pipeline")
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def dump_predictions(cfg: Config, file: str) -> None:
    """Have the predictions of a test written to a new file, a pickle."""
    if os.path.exists(file):
        raise UserError(f"--out {file} exists already; name a new file")
    if not file.endswith((".pkl", ".pickle")):
        raise UserError(f"--out {file}: expected a name that ends in .pkl")
    # MMDetection's dump packs masks; the others dump their data samples as they are.
    kind = "mmdet.DumpDetResults" if cfg.default_scope == "mmdet" else "DumpResults"
    owner, key = cfg, "test_evaluator"
    if isinstance(owner[key], dict) and "metrics" in owner[key]:  # an evaluator with its metrics
        owner, key = owner[key], "metrics"
    metrics = owner[key] if isinstance(owner[key], (list, tuple)) else [owner[key]]
    owner[key] = [*metrics, dict(type=kind, out_file_path=file)]
