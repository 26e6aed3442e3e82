"""Try `hire-mlp swap` on the configs that MMDetection, MMSegmentation and MMPretrain ship.

    python tools/sweep.py --out docs/compatibility.md

For one or more configs of every family (folder): does the model build with its own backbone here,
does the swap succeed, and does the result train a step (finite losses, and gradients in every
parameter of HireMLP) on two small made-up images? Each config runs in a process of its own. The
results so far are kept beside the table, in a file of JSON lines, and not computed twice.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.metadata
import json
import multiprocessing
import platform
import re
import signal
import textwrap
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, DefaultScope

from hire_mlp_mm import mmcv_ops
from hire_mlp_mm.configure import swap_backbone
from hire_mlp_mm.configure.changes import as_list
from hire_mlp_mm.configure.swap import find_network
from hire_mlp_mm.engine.config import find_config, read_config
from hire_mlp_mm.errors import UserError, describe

PACKAGES = {"mmdet": "MMDetection", "mmseg": "MMSegmentation", "mmpretrain": "MMPretrain"}
OPTIONAL = ("lap", "motmetrics", "scikit-image", "scikit-learn", "timm")  # some models need them
SIZES = (128, 256, 512)  # of the images: the first at which the model trains
SECONDS = 600  # for one config
# A family's example: the smallest model that its name promises.
SMALL = ("r18", "r50", "tiny", "nano", "small", "_s_", "-s_", "-t_", "b0", "base", "_b_")
WORKS, IN_PART, REFUSED, FAILED = "works", "in part", "refused", "failed"
NOT_BUILT = "does not build"
METHOD = (
    "Each config is taken as the host ships it, HireMLP-Tiny put in by `hire-mlp swap`, "
    "and one training step done on two made-up images: `works` means that the loss and all "
    "gradients of the backbone are finite. What does not work in the first environment was tried "
    "in the next one. A family is a folder of configs; of each kind of model in it one config is "
    "tried. A family of which nothing builds with its own backbone does not count."
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="work_dirs/compatibility.md", help="the table to write")
    parser.add_argument("--packages", nargs="+", choices=list(PACKAGES), default=list(PACKAGES))
    parser.add_argument("--families", nargs="+", metavar="NAME", help="these only")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    log = Path("work_dirs") / f"{out.stem}.jsonl"
    log.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in read_lines(log)]
    # Tried here, or known to work elsewhere.
    done = {row["config"] for row in rows if row["stack"] == stack() or row["status"] == WORKS}
    todo = [
        name
        for package in args.packages
        for family in families(package)
        if not args.families or family in args.families
        for name in examples(package, family)
    ]
    with log.open("a", encoding="utf-8") as file:
        missing = [name for name in todo if name not in done]
        for i, row in enumerate(try_all(missing, args.processes)):
            rows.append(row)
            print(json.dumps(row), file=file, flush=True)
            print(f"[{i + 1}/{len(missing)}] {row['config']}: {row['status']}", flush=True)
    wanted = set(todo)
    rows = sorted((r for r in rows if r["config"] in wanted), key=lambda r: todo.index(r["config"]))
    out.write_text(table(rows), encoding="utf-8")
    print(f"wrote {out}")


def read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def stack() -> str:
    """Versions of everything that a result depends on; of OPTIONAL what is there."""
    names = ("torch", "torchvision", "mmengine", "mmdet", "mmsegmentation", "mmpretrain")
    versions = [f"{name} {version(name)}" for name in (*names, *OPTIONAL) if version(name)]
    return ", ".join([f"Python {platform.python_version()}", *versions, mmcv_ops.describe()])


def version(name: str) -> str:
    """Version of an installed distribution, or nothing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


# The configs -------------------------------------------------------------------------------------


def families(package: str) -> list[str]:
    """Folders of configs in an installed package."""
    root = configs_of(package)
    return sorted(p.name for p in root.iterdir() if p.is_dir() and p.name != "_base_")


def configs_of(package: str) -> Path:
    return find_config(f"{package}::_base_/default_runtime.py").parents[1]


def examples(package: str, family: str) -> list[str]:
    """A config for each kind of model in a family: the same types of model, neck and heads."""
    root = configs_of(package)
    kinds: dict[str, str] = {}
    for path in sorted((root / family).rglob("*.py"), key=size_of_model):
        try:
            model = Config.fromfile(path).get("model")
        except Exception:  # some need files that packages don't ship, or packages of their own
            continue
        if isinstance(model, dict) and "type" in model:
            kinds.setdefault(kind_of(model), f"{package}::{path.relative_to(root)}")
    return sorted(kinds.values())


def size_of_model(path: Path) -> tuple[int, str]:
    """Sort key: small models first, by what their names say."""
    rank = [i for i, mark in enumerate(SMALL) if mark in path.stem]
    return (min(rank, default=len(SMALL)), path.stem)


def kind_of(model: ConfigDict) -> str:
    """Types of the parts of a model, without the backbone, which is to be replaced."""
    parts = {"model": model}
    parts.update({k: v for k, v in model.items() if k.endswith(("head", "neck", "detector"))})
    return json.dumps({k: [type_of(x) for x in as_list(v)] for k, v in parts.items()})


def type_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else part
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


# One config --------------------------------------------------------------------------------------


def try_all(names: Sequence[str], processes: int) -> Iterator[dict[str, Any]]:
    """Try each config in a process of its own, so that none takes another down."""
    for package in PACKAGES:  # once, before the processes fork
        importlib.import_module(f"{package}.models")
    context = multiprocessing.get_context("fork")
    waiting, running = list(reversed(names)), {}
    while waiting or running:
        while waiting and len(running) < processes:
            name = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            context.Process(target=try_one, args=(name, sender)).start()
            sender.close()  # the process has the other end; when it dies, ours says so
            running[receiver] = name
        for receiver in wait(list(running)):
            name = running.pop(receiver)
            try:
                status, reason = receiver.recv()
            except EOFError:
                status, reason = FAILED, "the process was killed (memory?)"
            package, _, path = name.partition("::")
            row = dict(config=name, package=package, family=path.split("/")[0], stack=stack())
            yield {**row, "status": status, "reason": reason}


def try_one(name: str, sender: Connection) -> None:
    """Send the verdict on one config."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    MMLogger.get_current_instance().setLevel("ERROR")  # the hosts say much about themselves
    signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SECONDS)
    try:
        result = verdict(name)
    except Exception as error:  # a sweep goes on
        result = FAILED, describe(error)
    sender.send(result)


def too_slow(*_: object) -> None:
    raise TimeoutError(f"not done in {SECONDS} s")


def verdict(name: str) -> tuple[str, str]:
    """Status of one config, and the reason for it."""
    torch.manual_seed(0)
    np.random.seed(0)
    try:
        cfg = read_config(name)
    except UserError:  # feature extractors, of which there is nothing to train
        return NOT_BUILT, "no model or no default_scope"
    try:
        with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device("meta"):
            MODELS.build(without_weights(cfg.model))
    except Exception:  # initialisation may need values, which the meta device has not
        try:
            with DefaultScope.overwrite_default_scope(cfg.default_scope):
                MODELS.build(without_weights(cfg.model))
        except Exception as error:
            return NOT_BUILT, describe(error)
    try:
        swapped = swap_backbone(cfg, "tiny", "none")
    except UserError as error:
        return REFUSED, str(error)
    try:
        train_a_step(swapped)
    except Exception as error:
        reason = describe(error)
        try:
            train_a_step(cfg)
        except Exception as own:
            reason += f" (with its own backbone: {describe(own)})"
        return FAILED, reason
    return WORKS, ""


def without_weights(model: Any) -> Any:
    """A model's config without anything to load."""
    if isinstance(model, dict):
        drop = ("init_cfg", "pretrained")
        return type(model)({k: without_weights(v) for k, v in model.items() if k not in drop})
    if isinstance(model, (list, tuple)):
        return type(model)(without_weights(v) for v in model)
    return model


def train_a_step(cfg: Config) -> None:
    """One forward and backward pass on made-up data.

    Raises:
        Exception: whatever the model raises on the largest size; an AssertionError for a loss that
            is not finite, or a parameter of the backbone without a gradient that nobody told of.
    """
    for size in SIZES:
        try:
            return step(cfg, size)
        except Exception:
            if size == SIZES[-1]:
                raise


def step(cfg: Config, size: int) -> None:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model_cfg = without_weights(copy.deepcopy(cfg.model))
        network, _ = find_network(model_cfg)
        inner = network is not model_cfg and "track_head" not in model_cfg
        if inner:  # trackers and semi-supervised models train the detector that they hold
            model_cfg = network
            model_cfg.setdefault("data_preprocessor", ConfigDict(type="DetDataPreprocessor"))
        elif "data_preprocessor" not in model_cfg and cfg.get("data_preprocessor"):
            model_cfg.data_preprocessor = dict(cfg.data_preprocessor)
        shrink(model_cfg, size)
        model = MODELS.build(model_cfg)
        model.init_weights()
        model.train()
        for counter in ("epoch", "iter"):  # as the runner does; some heads ask
            MessageHub.get_current_instance().update_info(counter, 0)
        batch = make_batch(cfg.default_scope, model_cfg, size)
        data = model.data_preprocessor(batch, training=True)
        loss, _ = model.parse_losses(model(**data, mode="loss"))
        loss.backward()
    assert loss.isfinite(), f"loss is {loss.item()}"
    backbone = model.backbone if hasattr(model, "backbone") else model.detector.backbone
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            assert cfg.get("find_unused_parameters"), f"backbone.{name} has no gradient"
        elif parameter.requires_grad:
            assert parameter.grad.isfinite().all(), f"gradient of backbone.{name} is not finite"


def shrink(model: ConfigDict, size: int) -> None:
    """Keep the data preprocessor from making large images of small ones."""
    preprocessor = model.get("data_preprocessor") or {}
    for key in ("batch_augments", "size_divisor"):
        preprocessor.pop(key, None)
    if "size" in preprocessor:
        preprocessor["size"] = (size, size)


# Made-up data ------------------------------------------------------------------------------------


def make_batch(scope: str, model: ConfigDict, size: int) -> dict[str, Any]:
    """Two images with something to learn, as the model's data loader would give them."""
    if scope == "mmdet":
        return detection_batch(model, size)
    channels = find_network(model)[0].backbone.get("in_channels", 3)
    images = [torch.randint(0, 256, (channels, size, size), dtype=torch.uint8) for _ in range(2)]
    if scope == "mmseg":
        return dict(inputs=images, data_samples=segmentation_samples(model, size))
    return classification_batch(model, images)


def number_of_classes(model: ConfigDict) -> int:
    """The smallest number of classes that any head names."""
    return min(int(n) for n in re.findall(r"'num_classes': (\d+)", str(model.to_dict())) or [1])


def detection_batch(model: ConfigDict, size: int) -> dict[str, Any]:
    from mmdet.structures import ReIDDataSample
    from mmdet.testing import demo_mm_inputs, demo_track_inputs
    from mmengine.structures import PixelData

    if str(model.type).endswith("ReID"):
        people = [ReIDDataSample().set_gt_label(i // 2) for i in range(4)]  # two of each
        return dict(inputs=torch.randint(0, 256, (4, 3, 256, 128)), data_samples=people)
    shape = (3, size, size)
    if "track_head" in model or "Video" in str(model.type):
        frames = dict(num_frames=2, key_frames_inds=[0], num_items=[3, 3])
        return demo_track_inputs(1, image_shapes=shape, num_classes=2, with_mask=True, **frames)
    masks = any(word in str(model.to_dict()) for word in ("mask", "Mask", "InsSep", "BoxInst"))
    items = dict(num_items=[3, 3], num_classes=2, with_mask=masks, with_semantic=True)
    batch = demo_mm_inputs(2, [shape] * 2, **items)
    for sample in batch["data_samples"]:
        sample.gt_instances.labels.clamp_(max=number_of_classes(model) - 1)
        boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.9], [0.2, 0.5, 0.6, 0.8]])
        sample.gt_instances.bboxes = boxes * size  # the demo's may have no area
        sample.proposals = copy.deepcopy(sample.gt_instances)
        sample.proposals.scores = torch.ones(len(sample.proposals))
        if "semantic_head" in (model.get("roi_head") or {}):  # it learns at stride 8
            sample.gt_sem_seg = PixelData(sem_seg=sample.gt_sem_seg.sem_seg[:, ::8, ::8])
    return batch


def segmentation_samples(model: ConfigDict, size: int) -> list[Any]:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for _ in range(2):
        labels = torch.randint(0, number_of_classes(model), (1, size // 16, size // 16))
        labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
        sample = SegDataSample(metainfo=dict(img_shape=(size, size), ori_shape=(size, size)))
        sample.gt_sem_seg = PixelData(data=labels)
        sample.gt_edge_map = PixelData(data=(labels % 2))
        samples.append(sample)
    return samples


def classification_batch(model: ConfigDict, images: list[torch.Tensor]) -> dict[str, Any]:
    from mmpretrain.structures import DataSample

    head = model.get("head") or {}
    samples = []
    for i in range(2):
        sample = DataSample()
        sample.set_gt_label([i] if "MultiLabel" in str(head.get("type")) else i)
        samples.append(sample)
    if str(model.type).endswith("ImageClassifier"):
        return dict(inputs=torch.stack(images), data_samples=samples)
    views = [torch.stack(images), torch.stack(images).flip(-1)]  # self-supervised
    return dict(inputs=views, data_samples=samples)


# The table ---------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The document: what was tried and with which versions, a summary, a row for each config."""
    stacks = list(dict.fromkeys(row["stack"] for row in rows))
    lines = ["# What HireMLP plugs into", ""]
    lines += [
        "Made by `python tools/sweep.py --out docs/compatibility.md`, in these environments:",
        "",
    ]
    lines += [f"{i}. {text}" for i, text in enumerate(stacks, 1)]
    lines += [
        "",
        *textwrap.wrap(METHOD, 100),
        "",
        "| package | families that build | train a step | of these in part | refused | failed |",
        "|---|---|---|---|---|---|",
    ]
    by_package = defaultdict(list)
    for row in best(rows):
        by_package[row["package"]].append(row)
    total: Counter[str] = Counter()
    for package, its_rows in by_package.items():
        counts = Counter(family_status(rs) for rs in by_family(its_rows).values())
        total += counts
        lines.append(summary(PACKAGES[package], counts))
    lines.append(summary("all", total))
    for package, its_rows in by_package.items():
        lines += [
            "",
            f"## {PACKAGES[package]}",
            "",
            "| family | config | result |",
            "|---|---|---|",
        ]
        for family, family_rows in by_family(its_rows).items():
            for row in family_rows:
                config = row["config"].partition("/")[2]
                reason = row["reason"].replace("|", "/").replace("\n", " ")[:200]
                where = f" in environment {stacks.index(row['stack']) + 1}"
                result = row["status"] + ("" if row["stack"] == stacks[0] else where)
                lines.append(f"| {family} | `{config}` | {result}{reason and ': '}{reason} |")
    return "\n".join(lines) + "\n"


def best(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each config the row of the environment in which it got furthest."""
    order = [WORKS, REFUSED, FAILED, NOT_BUILT]
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = found.setdefault(row["config"], row)
        if order.index(row["status"]) < order.index(known["status"]):
            found[row["config"]] = row
    return list(found.values())


def by_family(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    groups = defaultdict(list)
    for row in rows:
        groups[row["family"]].append(row)
    return dict(groups)


def family_status(rows: Sequence[dict[str, Any]]) -> str:
    """Works, in part, refused or failed; `does not build` where no example of it builds."""
    statuses = {row["status"] for row in rows} - {NOT_BUILT}
    if not statuses:
        return NOT_BUILT
    if WORKS in statuses:
        return WORKS if len(statuses) == 1 else IN_PART
    return FAILED if FAILED in statuses else REFUSED


def summary(name: str, counts: Counter[str]) -> str:
    built = sum(n for status, n in counts.items() if status != NOT_BUILT)
    works = counts[WORKS] + counts[IN_PART]
    share = f"{works} ({100 * works / max(built, 1):.1f} %)"
    return (
        f"| {name} | {built} | {share} | {counts[IN_PART]} | {counts[REFUSED]} | {counts[FAILED]} |"
    )


if __name__ == "__main__":
    main()
