"""Candidates of a benchmark that are whole models of a config, run as their hosts run them."""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib import import_module
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..compiling import compile_blocks
from ..configure.changes import Swap
from ..configure.measure import SIZES, Flow
from ..configure.readers import STRIDES, Rewiring, readers
from ..configure.swap import find_network
from ..deploy.exporting import randomize
from ..engine import load_config, options
from ..engine.agreement.classes import heads
from ..engine.config import model_of
from ..engine.forms import backbones, fuse_model, half_type, mix_precision, use_channels_last
from ..engine.quiet import quiet
from ..errors import UserError
from ..memory import keep_memory
from ..prediction.predictor import building
from .candidates import PEERS, Figures, Settings, compiler, parse_name, set_up
from .meters import peak_bytes, start_peak, timed, wait_for

PASS, KEPT = 300, 100  # boxes of a detector with random weights
OBJECTS = 7  # in a picture to train on, as in COCO's
SAMPLES = dict(mmdet="DetDataSample", mmseg="SegDataSample", mmpretrain="DataSample")
WITHIN = "roi_head"  # whose parts are named, and not itself
# Always called as modules; of the others hosts call some layers past the forward of the whole.
CALLED = ("data_preprocessor", "backbone", "neck")
PARTED = 3  # runs


class Whole:
    """Build a config's model with random weights in one of its forms; run and measure it."""

    def __init__(self, name: str, settings: Settings) -> None:
        form, self.options, dtype = parse_name(name, settings)
        set_up(settings)
        self.train = settings.train
        self.dtype = None if dtype == "float32" else half_type(dtype, settings.device)
        self.figures = Figures("+".join([form, *self.options]), dtype)
        self.image = picture(*settings.size).to(settings.device)
        self.batch = settings.batch
        with quiet():
            cfg = load_config(str(settings.config), options=settings.cfg_options)
            self.scope = cfg.default_scope
            if self.scope not in SAMPLES:
                expected = ", ".join(SAMPLES)
                raise UserError(f"{settings.config} is of {self.scope}; expected one of {expected}")
            cfg = with_peer(cfg, form) if form in PEERS else cfg
            if "cp" in self.options:
                find_network(cfg.model)[0].backbone.with_cp = True
            self.before = start_peak(self.image)
            self.build(cfg)
            self.count()
            self.change(form)
        self.parts = self.watch()

    def build(self, cfg: Config) -> None:
        """Build the model; of a training, its optimizer, too."""
        if not self.train:
            self.model = random_model(cfg, self.image)
            return
        self.model = built(cfg, self.image).train()
        self.model.init_weights()
        if self.dtype is not None:
            options.scale_losses(cfg, self.figures.dtype)
        self.optim = build_optim_wrapper(self.model, cfg.optim_wrapper)

    def count(self) -> None:
        """Count the work of the model as it is built: other forms of it do the same with less."""
        with FlopCounterMode(display=False) as counter:
            self.step(self.image)
        self.figures.macs = counter.get_total_flops() // 2
        self.figures.params = sum(p.numel() for p in self.model.parameters())

    def change(self, form: str) -> None:
        """Bring the model into its form."""
        if form == "fused":
            self.model = fuse_model(self.model)
        if self.dtype is not None:
            mix_precision(self.model, self.dtype, self.train)
        if "channels_last" in self.options and form in PEERS:
            self.model.to(memory_format=torch.channels_last)  # convolutions hand it on
        elif "channels_last" in self.options:
            use_channels_last(self.model)
        for backbone in backbones(self.model) if "compile" in self.options else ():
            compile_blocks(backbone)

    def watch(self) -> Parts:
        """Have the parts of a run timed, when that is asked for."""
        parts = Parts(self.image)
        for name, child in self.model.named_children():
            inner = [(name, child)] if name in CALLED else child.named_modules(prefix=name)
            for path, module in inner:
                part = path.removeprefix(f"{WITHIN}.").partition(".")[0]
                if not path.rpartition(".")[2].startswith("loss"):
                    parts.watch(module, "forward", part)
        if self.train:
            parts.watch(self.optim, "backward", "backward pass")
            parts.watch(self.optim, "step", "optimizer")
        return parts

    def step(self, image: Tensor) -> None:
        """Predict on an image (3, H, W), or train on it, as the host does, its pasting included."""
        images = [image] * self.batch
        with compiler(self.options):
            if self.train:
                with DefaultScope.overwrite_default_scope(self.scope):
                    self.model.train_step(batch_of(images, self.scope, self.model), self.optim)
            else:
                predict(self.model, self.scope, images)

    def measure(self) -> Figures:
        """Measure everything but the times; the peak is that of the model and a run of it."""
        run = partial(self.step, self.image)
        run()  # what comes once: threads, kernels, a compiler's work
        self.figures.peak = peak_bytes(run, self.image, self.before)
        if "keep" in self.options:
            keep_memory()
        run()
        return self.figures

    def shares(self) -> dict[str, float]:
        """Return how many milliseconds each part of the model takes, the medians of some runs."""
        rest = "assignment, losses" if self.train else "post-processing"
        run = partial(self.step, self.image)
        runs = [self.parts.measure(run, rest) for _ in range(PARTED)]
        return {part: statistics.median(one[part] for one in runs) for part in runs[0]}


class Parts:
    """Time calls of a run, the outermost alone, so that nothing is counted twice."""

    def __init__(self, where: Tensor) -> None:
        """Take a tensor on the device of the calls."""
        self.where, self.recording = where, False
        self.spent: dict[str, float] = defaultdict(float)

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Have a method of an object timed; MMSegmentation calls its heads without hooks."""
        call = getattr(owner, method)

        @wraps(call)
        def watched(*args: Any, **options: Any) -> Any:
            if not self.recording:
                return call(*args, **options)
            self.recording = False
            wait_for(self.where)
            start = time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                wait_for(self.where)
                self.spent[part] += 1e3 * (time.perf_counter() - start)
                self.recording = True

        setattr(owner, method, watched)

    def measure(self, work: Callable[[], object], rest: str) -> dict[str, float]:
        """Return the milliseconds of each part of some work; `rest` is the name of all else."""
        self.spent.clear()
        self.recording = True
        total = timed(work, self.where)
        self.recording = False
        return {**self.spent, rest: total - sum(self.spent.values())}


# Models -----------------------------------------------------------------------------------------


def with_peer(cfg: Config, name: str) -> Config:
    """Return a config with one of `PEERS` in the place of its backbone, of the same stages."""
    cfg = copy.deepcopy(cfg)
    network, path = find_network(cfg.model)
    stages = tuple(network.backbone.get("out_indices", range(len(STRIDES))))
    swap = Swap(cfg, "", network, path, original=copy.deepcopy(network))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        before = Flow.run(network.backbone, None, SIZES).backbone
        network.backbone = ConfigDict(PEERS[name], out_indices=stages)
        after = Flow.run(network.backbone, None, SIZES).backbone
    neck = swap.first_neck
    read = [(neck, path)] if "in_channels" in neck else readers(network, path)
    for reader, at in read:
        Rewiring(swap, before, after, range(len(after))).apply(reader, at)
    return cfg


def built(cfg: Config, image: Tensor) -> Any:
    """Build a config's model with random weights, for images such as (3, H, W), on its device."""
    torch.manual_seed(0)
    model = model_of(cfg)
    find_network(model)[0].backbone.init_cfg = None
    preprocessor: Any = model.get("data_preprocessor") or {}
    if preprocessor.get("size"):  # of crops to train on
        preprocessor.size = tuple(image.shape[1:])
    with building(cfg):
        return revert_sync_batchnorm(MODELS.build(model)).to(image.device)


def random_model(cfg: Config, image: Tensor) -> Any:
    """Build a model whose random weights matter, of a detector with a threshold that boxes pass."""
    model = built(cfg, image).eval()
    randomize(model)
    model.cfg = cfg  # as the hosts' `init_model` and the like keep it
    head = getattr(model, "roi_head", None) or getattr(model, "bbox_head", None)
    if head is not None:
        head.test_cfg.update(score_thr=0.0, max_per_img=PASS)
        scores = predict(model, cfg.default_scope, [image])[0].pred_instances.scores
        head.test_cfg.update(score_thr=float(min(scores, default=0.0)), max_per_img=KEPT)
    return model


@torch.no_grad()
def predict(model: Any, scope: str, images: Sequence[Tensor]) -> Sequence[Any]:
    """Predict on images (3, H, W) by the host, its preprocessing and pasting included."""
    with DefaultScope.overwrite_default_scope(scope):
        return model.test_step(batch_of(images, scope))


# Pictures ---------------------------------------------------------------------------------------


def picture(height: int, width: int) -> Tensor:
    """Make a picture of smooth noise (3, H, W), uint8."""
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return torch.from_numpy(cv2.resize(coarse, (width, height))).permute(2, 0, 1).contiguous()


def batch_of(images: Sequence[Tensor], scope: str, learner: Any = None) -> dict[str, Any]:
    """Make a batch of a host's, with something to learn for a model that trains on it."""
    _, height, width = images[0].shape
    size = height, width
    kind = getattr(import_module(f"{scope}.structures"), SAMPLES[scope])
    sizes = dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0))
    samples = [kind(metainfo=sizes) for _ in images]
    if learner is not None:
        classes = min((number for _, _, number in heads(learner)), default=1)
        for sample in samples:
            annotate(sample, scope, size, classes)
    return dict(inputs=list(images), data_samples=samples)


def annotate(sample: Any, scope: str, size: tuple[int, int], classes: int) -> None:
    """Give a sample random objects with boxes and masks, or a map of classes, or a class."""
    random, (height, width) = np.random.default_rng(0), size
    labels = torch.from_numpy(random.integers(0, classes, OBJECTS))
    if scope == "mmpretrain":
        sample.set_gt_label(labels[:1])
    elif scope == "mmseg":
        coarse = random.integers(0, classes, (height // 32, width // 32)).astype(np.uint8)
        areas = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(areas[None]).long())
    else:
        from mmdet.structures.mask import BitmapMasks

        sides = random.uniform(1 / 16, 1 / 2, (OBJECTS, 2))
        corners = random.uniform(0, 1 - sides)
        boxes = np.hstack([corners, corners + sides]) * (width, height, width, height)
        covered = np.zeros((OBJECTS, height, width), np.uint8)
        for one, (left, top, right, bottom) in zip(covered, boxes.astype(int), strict=True):
            one[top:bottom, left:right] = 1
        masks = BitmapMasks(covered, height, width)
        bboxes = torch.from_numpy(boxes).float()
        sample.gt_instances = InstanceData(bboxes=bboxes, labels=labels, masks=masks)
