"""Try `hire-mlp swap` on the configs that MMDetection, MMSegmentation and MMPretrain ship.

    python dev/sweep.py --out docs/compatibility.md

For one or more configs of every family (folder): does the model build with its own backbone here,
does the swap succeed, and does the result train a step (finite losses, and gradients in every
parameter of HireMLP) on two small made-up images? Each config runs in a process of its own. The
results so far are kept beside the table, in a file of JSON lines, and not computed twice.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import re
import signal
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import distributions
from itertools import groupby
from multiprocessing.connection import Connection
from multiprocessing.pool import ThreadPool
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chaos import preloaded
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData

from hire_mlp_mm import mmcv_ops
from hire_mlp_mm.configure import swap_backbone
from hire_mlp_mm.configure.changes import as_list
from hire_mlp_mm.configure.swap import find_network
from hire_mlp_mm.engine.config import find_config, read_config
from hire_mlp_mm.errors import UserError, describe

PACKAGES = {"mmdet": "MMDetection", "mmseg": "MMSegmentation", "mmpretrain": "MMPretrain"}
# What a result depends on; some models need the last five.
VERSIONED = ("torch", "torchvision", "mmengine", "mmdet", "mmsegmentation", "mmpretrain")
VERSIONED += ("lap", "motmetrics", "scikit-image", "scikit-learn", "timm")
SIZES = (128, 256, 512)  # of the images: the first at which the model trains
SECONDS = 600  # for one config
# A family's example: the smallest model that its name promises.
SMALL = ("r18", "r50", "tiny", "nano", "small", "_s_", "-s_", "-t_", "b0", "base", "_b_")
# From best to worst; of a family, there is `in part`, too.
WORKS, REFUSED, FAILED, NOT_BUILT = STATUSES = ("works", "refused", "failed", "does not build")
IN_PART = "in part"
METHOD = (
    "Each config is taken as the host ships it. `hire-mlp swap` puts HireMLP-Tiny in, and one "
    "training step is done on two made-up images. `works` means that the loss and all gradients of "
    "the backbone are finite. A config that does not work in the first environment was tried in "
    "the next one. A family is a folder of configs. One config is tried for each kind of model in "
    "it. A family does not count if none of its models builds with its own backbone. It is "
    "`in part` if only some of its models train."
)
EXPORTS = (
    "The last columns are of `python dev/exports.py PHOTOGRAPHS`, to be run after this: what "
    "`hire-mlp export` makes of the model, whole, and of its backbone with `--backbone`. "
    "`validated`: the file was written, and on photographs it gave what the host predicts, a "
    "detector's box by box; the model had random weights and one block in each stage. `refused`: "
    "it has no export form, as `hire-mlp export` says in a line before it begins. `fails`: the "
    "exporter or the check said no; `hire-mlp export` refuses it, too. `not tried`: the swap does "
    "not go in the first environment. `available`: an int8 file was written and ran, but random "
    "weights cannot tell how much it loses; [Performance](performance.md#exported-files) has "
    "figures of trained models. Models whose parts besides the backbone are of the same classes "
    "share a result, and all share the backbone's. A segmentor is exported as it runs on whole "
    "images, without sliding windows."
)
OTHERS = "\n## Other hosts\n"  # begins the part of the page that is written by hand
Row = dict[str, Any]


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
    log = Path("work_dirs") / f"{out.stem}.jsonl"
    for folder in (out.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    log.touch()
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    # Tried here, or known to work elsewhere.
    done = {row["config"] for row in rows if row["stack"] == stack() or row["status"] == WORKS}
    wanted = [name for package in args.packages for name in examples(package, args.families)]
    missing = [name for name in wanted if name not in done]
    with log.open("a") as file, ThreadPool(args.processes) as pool:
        for i, row in enumerate(pool.imap_unordered(try_apart, missing), 1):
            rows.append(row)
            print(json.dumps(row), file=file, flush=True)
            print(f"[{i}/{len(missing)}] {row['config']}: {row['status']}", flush=True)
    rows = [row for name in wanted for row in rows if row["config"] == name]
    _, heading, by_hand = (out.read_text() if out.exists() else "").partition(OTHERS)
    out.write_text(table(rows) + heading + by_hand)
    print(f"wrote {out}")


def stack() -> str:
    """List the versions of everything that a result depends on."""
    installed = {one.metadata["Name"]: one.version for one in distributions()}
    versions = [f"{name} {installed[name]}" for name in VERSIONED if name in installed]
    return ", ".join([f"Python {platform.python_version()}", *versions, mmcv_ops.describe()])


# The configs -------------------------------------------------------------------------------------


def examples(package: str, families: Sequence[str] | None) -> list[str]:
    """Choose a config for each kind of model in each family: the same types of model and parts."""
    root = find_config(f"{package}::_base_/default_runtime.py").parents[1]
    chosen = []
    for family in sorted(p.name for p in root.iterdir() if p.is_dir() and p.name != "_base_"):
        if families and family not in families:
            continue
        kinds: dict[str, str] = {}
        for path in sorted((root / family).rglob("*.py"), key=size_of_model):
            try:
                model = Config.fromfile(path).get("model")
            except Exception:  # some need files that packages don't ship, or packages of their own
                continue
            if isinstance(model, dict) and "type" in model:
                kinds.setdefault(kind_of(model), f"{package}::{path.relative_to(root)}")
        chosen += sorted(kinds.values())
    return chosen


def size_of_model(path: Path) -> tuple[int, str]:
    """Sort small models first, by what their names say."""
    rank = [i for i, mark in enumerate(SMALL) if mark in path.stem]
    return (min(rank, default=len(SMALL)), path.stem)


def kind_of(model: ConfigDict) -> str:
    """List the types of a model's parts, without the backbone, which is to be replaced."""
    parts = {"model": model}
    parts.update({k: v for k, v in model.items() if k.endswith(("head", "neck", "detector"))})
    return json.dumps({k: [type_of(x) for x in as_list(v)] for k, v in parts.items()})


def type_of(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else part
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


# One config --------------------------------------------------------------------------------------


def try_apart(name: str) -> Row:
    """Try a config in a process of its own, so that none takes another down."""
    context = preloaded()
    receiver, sender = context.Pipe(duplex=False)
    context.Process(target=try_one, args=(name, sender)).start()
    sender.close()  # the process has the other end; when it dies, ours says so
    try:
        status, reason = receiver.recv()
    except EOFError:
        status, reason = FAILED, f"the process was killed (memory, or more than {SECONDS} s?)"
    package, _, path = name.partition("::")
    row = dict(config=name, package=package, family=path.split("/")[0], stack=stack())
    return {**row, "status": status, "reason": reason}


def try_one(name: str, sender: Connection) -> None:
    """Send the verdict on one config."""
    signal.alarm(SECONDS)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    MMLogger.get_current_instance().setLevel("ERROR")  # the hosts say much about themselves
    sender.send(verdict(name))


def verdict(name: str) -> tuple[str, str]:
    """Return the status of one config, and the reason for it."""
    torch.manual_seed(0)
    np.random.seed(0)
    try:
        cfg = read_config(name)
    except UserError:  # feature extractors, of which there is nothing to train
        return NOT_BUILT, "no model or no default_scope"
    for device in ("meta", "cpu"):  # initialisation may need values, which `meta` has not
        try:
            with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device):
                MODELS.build(without_weights(cfg.model))
            break
        except Exception as error:
            reason = describe(error)
    else:
        return NOT_BUILT, reason
    try:
        swapped = swap_backbone(cfg, "tiny", "none")
    except UserError as error:
        return REFUSED, str(error)
    except Exception as error:  # a sweep goes on
        return FAILED, describe(error)
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
    """Copy a model's config, without anything to load."""
    if isinstance(model, dict):
        drop = ("init_cfg", "pretrained")
        return type(model)({k: without_weights(v) for k, v in model.items() if k not in drop})
    if isinstance(model, (list, tuple)):
        return type(model)(without_weights(v) for v in model)
    return model


def train_a_step(cfg: Config) -> None:
    """Do one forward and backward pass on made-up data; raise what the largest size raises."""
    for size in SIZES:
        try:
            return step(cfg, size)
        except Exception:
            if size == SIZES[-1]:
                raise


def step(cfg: Config, size: int) -> None:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model_cfg = without_weights(cfg.model)
        network, _ = find_network(model_cfg)
        if network is not model_cfg and "track_head" not in model_cfg:
            model_cfg = network  # trackers and others train the detector that they hold
            model_cfg.setdefault("data_preprocessor", ConfigDict(type="DetDataPreprocessor"))
        elif "data_preprocessor" not in model_cfg and cfg.get("data_preprocessor"):
            model_cfg.data_preprocessor = dict(cfg.data_preprocessor)
        preprocessor = model_cfg.get("data_preprocessor") or {}
        for key in ("batch_augments", "size_divisor"):  # they make large images of small ones
            preprocessor.pop(key, None)
        if "size" in preprocessor:
            preprocessor["size"] = (size, size)
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


# Made-up data ------------------------------------------------------------------------------------


def make_batch(scope: str, model: ConfigDict, size: int) -> dict[str, Any]:
    """Make two images with something to learn, as the model's data loader would give them."""
    # The smallest number of classes that any head names.
    classes = min(map(int, re.findall(r"'num_classes': (\d+)", str(model.to_dict()))), default=1)
    if scope == "mmdet":
        return detection_batch(model, size, classes)
    channels = find_network(model)[0].backbone.get("in_channels", 3)
    images = [torch.randint(0, 256, (channels, size, size), dtype=torch.uint8) for _ in range(2)]
    if scope == "mmseg":
        samples = [segmentation_sample(size, classes) for _ in images]
        return dict(inputs=images, data_samples=samples)
    return classification_batch(model, torch.stack(images))


def detection_batch(model: ConfigDict, size: int, classes: int) -> dict[str, Any]:
    from mmdet.structures import ReIDDataSample
    from mmdet.testing import demo_mm_inputs, demo_track_inputs

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
        sample.gt_instances.labels.clamp_(max=classes - 1)
        boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.4, 0.3, 0.9, 0.9], [0.2, 0.5, 0.6, 0.8]])
        sample.gt_instances.bboxes = boxes * size  # the demo's may have no area
        sample.proposals = copy.deepcopy(sample.gt_instances)
        sample.proposals.scores = torch.ones(len(sample.proposals))
        if "semantic_head" in (model.get("roi_head") or {}):  # it learns at stride 8
            sample.gt_sem_seg = PixelData(sem_seg=sample.gt_sem_seg.sem_seg[:, ::8, ::8])
    return batch


def segmentation_sample(size: int, classes: int) -> Any:
    from mmseg.structures import SegDataSample

    labels = torch.randint(0, classes, (1, size // 16, size // 16))
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    sample = SegDataSample(metainfo=dict(img_shape=(size, size), ori_shape=(size, size)))
    sample.gt_sem_seg, sample.gt_edge_map = PixelData(data=labels), PixelData(data=labels % 2)
    return sample


def classification_batch(model: ConfigDict, images: torch.Tensor) -> dict[str, Any]:
    from mmpretrain.structures import DataSample

    many = "MultiLabel" in str((model.get("head") or {}).get("type"))
    samples = [DataSample().set_gt_label([i] if many else i) for i in range(2)]
    if not str(model.type).endswith("ImageClassifier"):  # self-supervised, on two views
        images = [images, images.flip(-1)]
    return dict(inputs=images, data_samples=samples)


# The table ---------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Write the document: what was tried and with which versions, a summary, and each result."""
    stacks = list(dict.fromkeys(row["stack"] for row in rows))
    # The rows of a family stand next to each other.
    of_config: dict[str, Row] = {}  # its row in the environment in which it got furthest
    for row in rows:
        known = of_config.setdefault(row["config"], row)
        of_config[row["config"]] = min(known, row, key=lambda r: STATUSES.index(r["status"]))
    counts: dict[str, Counter[str]] = {}
    details: list[str] = []
    for package, its_rows in groupby(of_config.values(), itemgetter("package")):
        title = PACKAGES[package]
        counts[title] = Counter()
        details += ["", f"## {title}", "", "| family | config | result |", "|---|---|---|"]
        for family, group in groupby(its_rows, itemgetter("family")):
            family_rows = list(group)
            counts[title][family_status({row["status"] for row in family_rows})] += 1
            for row in family_rows:
                config = row["config"].partition("/")[2]
                reason = row["reason"].replace("|", "/").replace("\n", " ")[:200]
                number = stacks.index(row["stack"]) + 1
                result = row["status"] + (f" in environment {number}" if number > 1 else "")
                details.append(f"| {family} | `{config}` | {result}{reason and ': '}{reason} |")
    counts["all"] = sum(counts.values(), Counter())
    lines = [
        "# In which models does HireMLP work?",
        "",
        "`python dev/sweep.py --out docs/compatibility.md` made this page, in these environments:",
        "",
        *(f"{i}. {text}" for i, text in enumerate(stacks, 1)),
        "",
        *textwrap.wrap(METHOD, 100),
        "",
        *textwrap.wrap(EXPORTS, 100),
        "",
        "| package | families that build | train a step | of these in part | refused | failed |",
        "|---|---|---|---|---|---|",
        *(summary(title, count) for title, count in counts.items()),
        *details,
    ]
    return "\n".join(lines) + "\n"


def family_status(statuses: set[str]) -> str:
    """Say whether a family works, in part, is refused or failed, by its examples that build."""
    built = statuses - {NOT_BUILT}
    if WORKS in built:
        return WORKS if len(built) == 1 else IN_PART
    return next((status for status in (FAILED, REFUSED) if status in built), NOT_BUILT)


def summary(name: str, counts: Counter[str]) -> str:
    built, works = counts.total() - counts[NOT_BUILT], counts[WORKS] + counts[IN_PART]
    share = f"{works} ({100 * works / max(built, 1):.1f} %)"
    return (
        f"| {name} | {built} | {share} | {counts[IN_PART]} | {counts[REFUSED]} | {counts[FAILED]} |"
    )


if __name__ == "__main__":
    main()
