"""Predict with a model of the hosts, from a checkpoint and its config."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope
from torch import nn

from .. import weights
from ..data.palette import palette_for
from ..doctor import HOSTS
from ..engine import load_config
from ..engine.agreement.classes import heads
from ..engine.agreement.sides import is_a
from ..engine.batches import one_line_errors
from ..engine.builds import named_faults
from ..engine.checkpoints import load_checked, load_from_file, tensors_of
from ..engine.config import innermost, model_of
from ..engine.forms import SLOW, half_type, is_slow, speed_up
from ..engine.harden import last_name
from ..errors import UserError, first_line
from ..files import IMAGES
from ..loading import load_from_hire_mlp
from .base import BasePredictor, Prediction, Prepared
from .inputs import Shot
from .origin import find_checkpoint, find_config_of
from .pictures import Artist, as_rgb
from .results import choose
from .samples import pick, results_of


class Predictor(BasePredictor):
    """Predict with a trained detector, segmentor or classifier of the hosts; see `BasePredictor`.

    Attributes:
        checkpoint, config: the files that were taken.
        model: the host's model.

    Examples:
        >>> predictor = hire_mlp_mm.Predictor("work_dirs/mine")
        >>> for found in predictor("photographs"):
        ...     print(found.source.name, found.results)
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        config: str | os.PathLike[str] | None = None,
        *,
        score_thr: float | None = None,
        classes: Sequence[str] | None = None,
        batch_size: int = 1,
        device: str | None = None,
        fused: bool = False,
        dtype: str | None = None,
        cfg_options: dict[str, Any] | None = None,
    ) -> None:
        """Load a model.

        Args:
            checkpoint: a file, a URL, `hire-mlp://NAME`, or a work dir: its best checkpoint, or
                else its last one.
            config: a path, `PACKAGE::FILE` or a recipe's `NAME`; None for the one that lies beside
                the checkpoint.
            score_thr: of a detector, the least score of a box; None for 0.3.
            classes: names of the only classes to predict; None for all. Of a segmentor, other
                pixels get the largest number of their type; of a classifier, the others are left
                out.
            batch_size: how many images of one size are predicted together.
            device: such as `cpu` or `cuda:0`; None for the GPU, where there is one.
            fused: use the exact inference form.
            dtype: `bfloat16` or `float16`, for automatic mixed precision in the whole model;
                `auto` for bfloat16 on a CPU and float16 on a GPU.
            cfg_options: values by their dotted keys, put into the config.

        Raises:
            UserError: an argument, the checkpoint or the config cannot be used.
        """
        super().__init__(batch_size)
        self.checkpoint = find_checkpoint(os.fspath(checkpoint))
        self.config = os.fspath(config) if config else find_config_of(self.checkpoint)
        self.cfg = load_config(self.config, options=cfg_options)
        self.scope: str = self.cfg.default_scope
        if self.scope not in HOSTS:
            raise UserError(
                f"config {self.config} is of {self.scope}; expected one of {', '.join(HOSTS)}"
            )
        self.task = HOSTS[self.scope]
        self.device = find_device(device)
        half = None if dtype is None else half_type(dtype, self.device)
        self.model, meta = load_model(self.cfg, self.checkpoint)
        self.check_head()
        self.model = speed_up(self.model.to(self.device).eval(), fused, half)
        self.classes = names_of(meta, self.cfg, self.model)
        self.palette = palette_for(meta.get("palette"), len(self.classes))
        self.choice = choose(score_thr, classes, self.classes, self.task)
        with building(self.cfg):
            self.loader, self.steps = build_pipeline(self.cfg)
        self.origin = f"{self.checkpoint}, {self.config}, on {self.device}"
        if half is not None and is_slow(half, torch.device(self.device)):
            self.origin += f"; {SLOW}"

    def check_head(self) -> None:
        """Raise UserError where a classifier has several heads, so that no class is the best."""
        head: Any = getattr(self.model, "head", None)
        if is_a(head, "MultiTaskHead"):
            raise UserError(
                f"{self.config}: MultiTaskHead has several tasks ({', '.join(head.task_heads)}); "
                f"expected a head of one task, whose classes can be told apart"
            )

    def prepare(self, shot: Shot) -> Prepared:
        """Run the test pipeline on a shot."""
        image, results = as_rgb(shot.results["img"]), shot.results
        ori_shape = results["ori_shape"]
        with DefaultScope.overwrite_default_scope(self.scope):
            for step in self.steps:
                results = step(results)
        if results is None:
            raise ValueError("the pipeline has refused it")
        shot.results = dict(ori_shape=ori_shape)  # the rest is large
        return Prepared(shot, image, results, results["inputs"].shape)

    @torch.no_grad()
    def forward(self, batch: list[Prepared]) -> list[Any]:
        """Return the data samples of a batch, on the CPU."""
        data = pseudo_collate([one.data for one in batch])
        with DefaultScope.overwrite_default_scope(self.scope):
            model: Any = self.model
            return [pick(sample.cpu(), self.choice) for sample in model.test_step(data)]

    def results_of(self, sample: Any) -> Any:
        """Return the plain results of a data sample."""
        return results_of(sample, self.classes, self.choice)

    @cached_property
    def artist(self) -> Artist:
        """Build what draws, when it is first asked for."""
        with DefaultScope.overwrite_default_scope(self.scope):
            return Artist(self.cfg, self.classes, self.palette)

    def draw(self, found: Prediction) -> np.ndarray:
        """Draw a prediction into a copy of its image: (H, W, 3) uint8, RGB."""
        return self.artist.draw(found.image, found.sample)


# Building ---------------------------------------------------------------------------------------


def find_device(name: str | None) -> str:
    """Return the device of a name, or raise UserError where this machine has none of it."""
    name = name or get_device()
    try:
        torch.zeros(1, device=name)
    except Exception as error:  # of many kinds, for each kind of device its own
        raise UserError(f"device {name} cannot be used: {first_line(error)}") from error
    return name


def load_model(cfg: Config, checkpoint: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a config with the weights of a checkpoint; return what that says of data.

    Raises:
        UserError: the model cannot be built, or a tensor of it is not in the file.
    """
    reads = load_from_hire_mlp if checkpoint.startswith(weights.SCHEME) else load_from_file
    data = reads(checkpoint, "cpu")
    with building(cfg):
        model = revert_sync_batchnorm(MODELS.build(model_of(cfg)))
    state = data.get("state_dict", data)
    load_checked(tensors_of(state), model, f"checkpoint {checkpoint}")
    meta = (data.get("meta") or {}).get("dataset_meta") or {}
    # The hosts' older releases wrote capitals.
    return model, {str(key).lower(): value for key, value in meta.items()}


@contextlib.contextmanager
def building(cfg: Config) -> Iterator[None]:
    """Build parts of a config within its scope; turn errors of its keys into UserError."""
    scope = DefaultScope.overwrite_default_scope(cfg.default_scope)
    with scope, one_line_errors(), named_faults(cfg):
        yield


def tested_dataset(cfg: Config) -> dict[str, Any]:
    """Return the first data set that a config tests on; an empty dict where there is none."""
    found: dict[str, Any] = innermost((cfg.get("test_dataloader") or {}).get("dataset") or {})
    return found


def names_of(meta: dict[str, Any], cfg: Config, model: nn.Module | None) -> list[str]:
    """Name the classes as the checkpoint does, or the config's data set, and number the others."""
    names = meta.get("classes")
    if not names:
        dataset = tested_dataset(cfg)
        names = (dataset.get("metainfo") or {}).get("classes")
        if not names and dataset.get("type"):
            with (
                DefaultScope.overwrite_default_scope(cfg.default_scope),
                DATASETS.switch_scope_and_registry(None) as registry,
            ):
                names = getattr(registry.get(dataset["type"]), "METAINFO", {}).get("classes")
    names = [names] if isinstance(names, str) else [str(name) for name in names or ()]
    numbers = [number for _, _, number in heads(model)] if model else []
    count = max(numbers, default=0)
    return names + [f"class {label}" for label in range(len(names), count)]


def build_pipeline(cfg: Config) -> tuple[Any, list[Any]]:
    """Build the loader of images and the other steps of a config's test pipeline.

    What loads annotations is left out.
    """
    built = []
    for step in tested_dataset(cfg).get("pipeline") or ():
        name = last_name(step["type"])
        if not name.startswith("Load") or "Image" in name:
            built.append(TRANSFORMS.build(step))
    if not built or not isinstance(built[0], LoadImageFromFile):
        raise UserError(
            f"{cfg.filename}: expected a test_dataloader.dataset.pipeline that begins with "
            f"LoadImageFromFile"
        )
    loader, *steps = built
    loader.backend_args, loader.file_client_args = dict(backend=IMAGES), None  # whole files alone
    loader.ignore_empty = False
    return loader, steps
