"""Compare a model with its batches, and find models that cannot learn or cannot run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_world_size
from torch import nn
from torch.utils.data import DataLoader

from ...data.report import near
from ...layer_decay import HOST_OPTIONS
from ..guarded.samples import steps
from ..harden import last_name
from .sides import Run, is_a, leaves

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


# Batches ----------------------------------------------------------------------------------------


def enough_images(run: Run) -> Iterator[str]:
    """Compare the number of images with a batch: what does not fill one is left out."""
    side = run.side("train")
    if side is None or isinstance(getattr(side.loader, "sampler", None), InfiniteSampler):
        return
    sampler = side.loader.batch_sampler
    if is_a(sampler, "BatchSampler", "PlacedBatchSampler") and len(sampler) == 0:
        size, images = sampler.batch_size, len(sampler.sampler)
        each = " of each process" if get_world_size() > 1 else ""
        yield (
            f"{side.key} has {images} images{each}, and train_dataloader.batch_size={size} with "
            f"drop_last leaves no batch: set train_dataloader.batch_size to {images} or less, or "
            "train_dataloader.drop_last=False"
        )


def iterations(run: Run) -> Iterator[str]:
    """Find trainings that are to end before their first iteration."""
    side = run.side("train")
    by_epoch = side is not None and is_a(side.loop, "EpochBasedTrainLoop")
    key = "max_epochs" if by_epoch else "max_iters"
    if side is not None and (number := getattr(side.loop, key, 1)) < 1:
        yield f"train_cfg.{key} is {number}, and nothing would be trained: set it to 1 or more"


def packed_before_mixed(run: Run) -> Iterator[str]:
    """Find samples that are packed for the model before steps that mix several of them."""
    for side in run.sides:
        key, dataset = side.key, side.loader.dataset
        while not is_a(dataset, "MultiImageMixDataset"):
            if not hasattr(dataset, "dataset"):
                return
            key, dataset = f"{key}.dataset", dataset.dataset
        mixing = names_of_steps(dataset)
        for inner_key, inner in leaves(dataset, key) if mixing else ():
            for packing in (name for name in names_of_steps(inner) if name.startswith("Pack")):
                yield (
                    f"{key}.pipeline ({mixing[0]}) mixes samples that {inner_key} has packed: move "
                    f"{packing} from {inner_key}.pipeline to the end of {key}.pipeline"
                )


def names_of_steps(dataset: Any) -> list[str]:
    """Name the steps of a data set's pipeline."""
    pipeline = getattr(dataset, "pipeline", [])
    found = steps(getattr(pipeline, "transforms", pipeline))
    return [type(step).__name__ for step in found]


def all_images_once(run: Run) -> Iterator[str]:
    """Find loaders of an evaluation that leave images out, or never come to an end."""
    for side in run.sides:
        if side.split == "train" or not isinstance(side.loader, DataLoader):
            continue
        loader = f"{side.split}_dataloader"
        dataset: Any = side.loader.dataset
        size, images = side.loader.batch_size, len(dataset)
        if isinstance(side.loader.sampler, InfiniteSampler):
            yield (
                f"{loader}.sampler (InfiniteSampler) has no end, and an evaluation would have "
                f"none: set {loader}.sampler to dict(type='DefaultSampler', shuffle=False)"
            )
        elif side.loader.drop_last and size and (left_out := images % (size * get_world_size())):
            yield (
                f"{loader}.drop_last=True leaves out {left_out} of the {images} images of "
                f"{side.key}: set {loader}.drop_last=False"
            )


def batch_of_one(run: Run) -> str:
    """Say what keeps a training from batches of one image, if it comes upon one; else nothing."""
    side = run.side("train")
    batches: Any = side.loader.batch_sampler if side is not None else None
    if side is None or not is_a(batches, "BatchSampler", "PlacedBatchSampler"):
        return ""
    if batches.batch_size == 1:
        return "set train_dataloader.batch_size to 2 or more"
    # Others group the images in a way of their own, or go on with the next pass.
    plain = getattr(batches, "batch_sampler", None) is None
    plain = plain and not isinstance(batches.sampler, InfiniteSampler)
    images = len(batches.sampler) if plain and not batches.drop_last else 0
    if images % batches.batch_size == 1 and run.iterations >= len(side.loader):
        return f"set train_dataloader.drop_last=True (the last batch of {images} images has 1)"
    return ""


def norms_of_one_value(run: Run) -> Iterator[str]:
    """Find heads that norm a batch where it has one value for each channel.

    A pyramid of pools has a map of 1 x 1 pixel; with a batch of one image, BatchNorm has nothing
    to take a variance of.
    """
    cure = batch_of_one(run)
    alone = get_world_size() == 1
    for path, part in run.model.named_modules() if cure else ():
        if not isinstance(part, nn.Sequential) or path.startswith("backbone") or len(part) < 2:
            continue
        pools = isinstance(part[0], nn.AdaptiveAvgPool2d) and part[0].output_size in (1, (1, 1))
        norms = [m for m in part.modules() if isinstance(m, NORMS)]
        if pools and any(alone or not isinstance(norm, nn.SyncBatchNorm) for norm in norms):
            head = f"model.{path.partition('.')[0]}"
            kind = type(run.model.get_submodule(path.partition(".")[0])).__name__
            yield (
                f"{head} ({kind}) pools a map to 1 x 1 pixel before a BatchNorm, which cannot "
                f"train on one image: {cure}, or {head}.norm_cfg to a norm without batch "
                "statistics, such as dict(type='GN', num_groups=32)"
            )
            return


# Optimizers -------------------------------------------------------------------------------------


def unread_options(run: Run) -> Iterator[tuple[str, str]]:
    """Yield (option of paramwise_cfg that nobody reads, the nearest that is read or nothing).

    Constructors other than mmengine's own read what they like.
    """
    wrapper = (run.cfg.get("optim_wrapper") or {}) if run.side("train") else {}
    kind = last_name(wrapper.get("constructor") or "DefaultOptimWrapperConstructor")
    if kind == "DefaultOptimWrapperConstructor":
        for option in wrapper.get("paramwise_cfg") or ():
            if option not in HOST_OPTIONS:
                line = f"optim_wrapper.paramwise_cfg.{option} has no effect"
                yield line, near(option, HOST_OPTIONS)


def misspelt_options(run: Run) -> Iterator[str]:
    """Find options of the parameters' groups that are slips for others."""
    yield from (f"{line}; did you mean {other!r}?" for line, other in unread_options(run) if other)


def other_options(run: Run) -> Iterator[str]:
    """Find options of the parameters' groups that nobody reads, and that look like no other."""
    yield from (line for line, other in unread_options(run) if not other)


# Heads and losses -------------------------------------------------------------------------------


def losses_of(head: nn.Module) -> list[Any]:
    """List the losses of a head of a segmentor."""
    losses = getattr(head, "loss_decode", None)
    return list(losses) if isinstance(losses, nn.ModuleList) else [losses]


def something_to_learn(run: Run) -> Iterator[str]:
    """Find segmentors whose loss is 0 whatever they predict."""
    for path, head in run.model.named_modules() if run.side("train") else ():
        if not is_a(head, "BaseDecodeHead") or getattr(head, "out_channels", None) != 1:
            continue
        for loss in losses_of(head):
            plain = type(loss).__name__ == "CrossEntropyLoss"
            if plain and not loss.use_sigmoid and not loss.use_mask:
                yield (
                    f"model.{path} ({type(head).__name__}) has one output and a loss over a "
                    "softmax, which is 1 for a single output: there is nothing to learn; set model."
                    f"{path}.num_classes=2 (background and object), and either model.{path}."
                    f"out_channels=2, or 1 with model.{path}.loss_decode.use_sigmoid=True"
                )


def class_weights(run: Run) -> Iterator[str]:
    """Compare the weights that a loss has for each class with the classes of its head."""
    for path, loss in run.model.named_modules() if run.side("train") else ():
        weights = getattr(loss, "class_weight", None)
        owner, _, name = path.removesuffix(".0").rpartition(".")
        if not isinstance(weights, (list, tuple)) or name not in LOSSES:
            continue
        number = getattr(run.model.get_submodule(owner), "num_classes", None)
        if not isinstance(number, int) or getattr(loss, "use_sigmoid", False):
            continue
        # A detector's softmax has an output for the background, too.
        expected = [number, number + 1][: 2 if name == "loss_cls" else 1]
        if len(weights) not in expected:
            key = f"model.{owner}.{LOSSES[name]}.class_weight"
            yield (
                f"{key} has {len(weights)} weights, and model.{owner} num_classes={number}: "
                "give a weight for each class"
            )


LOSSES = {"loss_decode": "loss_decode", "loss_module": "loss", "loss_cls": "loss_cls"}  # and keys


def windows(run: Run) -> Iterator[str]:
    """Find segmentors that are to look through windows of no size."""
    test_cfg = getattr(run.model, "test_cfg", None)
    if not isinstance(test_cfg, dict) or all(side.split == "train" for side in run.sides):
        return
    mode = test_cfg.get("mode")
    if is_a(run.model, "BaseSegmentor") and mode not in ("slide", "whole"):
        yield f"model.test_cfg.mode is {mode!r}: set it to 'whole' or 'slide'"
    if mode != "slide":
        return
    missing = [name for name in ("crop_size", "stride") if not test_cfg.get(name)]
    crop, stride = test_cfg.get("crop_size", ()), test_cfg.get("stride", ())
    if missing:
        yield (
            f"model.test_cfg.mode is 'slide', and {' and '.join(missing)} of the windows is not "
            "set: set model.test_cfg.crop_size and model.test_cfg.stride (height, width in "
            "pixels), or model.test_cfg.mode=whole"
        )
    elif not (is_size(crop) and is_size(stride)):
        yield (
            f"model.test_cfg.crop_size is {crop!r} and model.test_cfg.stride {stride!r}: expected "
            "height and width of the windows, and of the steps between them, in pixels"
        )
    elif stride[0] > crop[0] or stride[1] > crop[1]:
        yield (
            f"model.test_cfg.stride {tuple(stride)} is longer than the windows (crop_size "
            f"{tuple(crop)}), and what lies between them would not be seen: set it to crop_size or "
            "less"
        )


def is_size(value: Any) -> bool:
    """Tell whether a value is a height and a width in pixels."""
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and all(isinstance(side, int) and side > 0 for side in value)
