"""Check a file of a detector against the host's own predictions, detection by detection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from torch import Tensor
from torchvision.ops import box_iou

from ..data.listing import is_image
from ..errors import UserError, describe
from .boxes import paste
from .formats import CheckError, Runner, Say
from .forms import Form
from .tracing import LEAST

CURE = "photographs (--check DIR) in which the model finds something"
BOX, SCORE, MASK = 0.05, 1e-4, 1e-3  # largest differences: pixels, scores, probabilities
OVERLAP = 1e-3  # so close to the threshold of the suppression, either side may keep a box
# Ties and thresholds explain no more than so many detections, and this share of all.
FEW, SHARE = 4, 0.02
RANDOM = ((64, 64), (75, 203), (224, 161), (301, 448))  # heights and widths
# Photographs are taken as they are and in these parts of their sizes, with odd heights and widths.
PARTS = (1.0, 0.4, 0.75)


@dataclass
class Agreement:
    """Hold how a file's detections agree with the host's.

    Attributes:
        images, detections: how many were compared.
        explained: how many are on one side alone, by the reason that explains it.
        box, score, mask: the largest differences.
    """

    images: int = 0
    detections: int = 0
    explained: Counter[str] = field(default_factory=Counter)
    box: float = 0.0
    score: float = 0.0
    mask: float = 0.0

    def __str__(self) -> str:
        ties = ", ".join(f"{count} {reason}" for reason, count in self.explained.items())
        ties = f"; on one side alone: {ties}" if ties else ""
        return (
            f"{self.images} images, {self.detections} detections: largest differences "
            f"{self.box:.1e} pixels, scores {self.score:.1e}, masks {self.mask:.1e}{ties}"
        )


def compare_detections(
    runner: Runner, form: Form, preprocessed: bool, folder: Path | None, say: Say
) -> Agreement:
    """Compare the detections of a file with the host's `predict`, image by image.

    Args:
        runner: of the file.
        form: its form.
        preprocessed: whether the file takes the image as it is loaded.
        folder: of photographs; random images without it.
        say: is told what came of it.

    Raises:
        UserError: there are no photographs in the folder.
        CheckError: a detection differs that no tie and no threshold explains, or nothing is found.
    """
    agreement = Agreement()
    for name, image in images_of(folder):
        size = "{} x {}".format(*image.shape[:2])
        wanted, given, masks = predict_by_host(form.model, image)
        try:
            found = runner(given[0] if preprocessed else given[1])
        except Exception as error:  # whatever the runtime raises
            raise CheckError(f"it fails on {name} ({size}): {describe(error)}") from error
        try:
            compare_one(dict(zip(form.names, found, strict=True)), wanted, masks, form, agreement)
        except CheckError as error:
            raise CheckError(f"{name} ({size}): {error}") from error
    if agreement.explained.total() > FEW + SHARE * agreement.detections:
        raise CheckError(f"too much is on one side alone: {agreement}")
    if not agreement.detections:
        images = f"{agreement.images} {'random images' if folder is None else 'photographs'}"
        raise CheckError(f"nothing is found in {images}, so no box was compared; name {CURE}")
    say(str(agreement))
    return agreement


def images_of(folder: Path | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and images (H, W, 3) uint8, BGR: a folder's photographs, or random ones."""
    if folder is None:
        random = np.random.default_rng(0)
        for height, width in RANDOM:
            coarse = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
            yield "a random image", cv2.resize(coarse, (width, height))
        return
    paths = [path for path in sorted(folder.rglob("*")) if is_image(str(path))]
    if not paths:
        raise UserError(f"{folder}: no photographs in it; expected a folder with images")
    for i, path in enumerate(paths):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            raise UserError(f"{path} cannot be read as an image; take it out of the folder")
        if min(image.shape[:2]) < LEAST:
            size = "{} x {}".format(*image.shape[:2])
            raise UserError(f"{path} is {size}; expected sides from {LEAST} up; take it out")
        part = PARTS[i % len(PARTS)]
        if part != 1:
            height, width = (max(int(side * part), LEAST) | 1 for side in image.shape[:2])
            image = cv2.resize(image, (width, height))
        yield str(path), image


def predict_by_host(
    model: Any, image: np.ndarray
) -> tuple[Any, tuple[Tensor, Tensor], Tensor | None]:
    """Predict by the host.

    Returns:
        its instances, with masks of the image's size; the image as loaded and as normalised,
        (1, 3, H, W) both; and masks (n, h, w) as probabilities, before they are pasted.
    """
    height, width = image.shape[:2]
    sizes = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
    loaded = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    data = dict(inputs=[loaded], data_samples=[DetDataSample(metainfo=sizes)])
    data = model.data_preprocessor(data, False)
    logits: list[Tensor] = []  # of each stage, before the host chooses and pastes
    heads = masks_of(model)
    hooks = [h.register_forward_hook(lambda _, __, out: logits.append(out)) for h in heads]
    with torch.no_grad():
        found = model.predict(data["inputs"], data["data_samples"], rescale=False)[0]
    for hook in hooks:
        hook.remove()
    instances = found.pred_instances
    masks = None
    if logits:
        place = torch.arange(len(instances))
        chosen = [
            x[place, 0 if head.class_agnostic else instances.labels].sigmoid()
            for x, head in zip(logits, heads, strict=True)
        ]
        masks = torch.stack(chosen).mean(0)
    normalised = data["inputs"][..., :height, :width].contiguous()
    return instances, (loaded[None], normalised), masks


def masks_of(model: Any) -> Sequence[Any]:
    """Return the mask heads of a detector."""
    head = getattr(getattr(model, "roi_head", None), "mask_head", None)
    if head is None:
        return ()
    return tuple(head) if isinstance(head, torch.nn.ModuleList) else (head,)


def compare_one(
    found: dict[str, Tensor], wanted: Any, masks: Tensor | None, form: Form, agreement: Agreement
) -> None:
    """Compare the detections of an image; raise CheckError for one that nothing explains."""
    head: Any = form.model.roi_head if hasattr(form.model, "roi_head") else form.model.bbox_head
    pairs, left = match(found, wanted)
    sides = (
        (found["boxes"], found["scores"], found["labels"]),
        (wanted.bboxes, wanted.scores, wanted.labels),
    )
    alone = [torch.tensor([i for s, i in left if s == side], dtype=torch.long) for side in (0, 1)]
    for side, index in left:
        own, other = sides[side], sides[1 - side]
        reason = explain(own, other, index, alone[1 - side], head.test_cfg)
        if reason is None:
            boxes, scores, labels = (x[index].tolist() for x in sides[side])
            where = "the file's alone" if side == 0 else "missing in the file"
            at = ", ".join(f"{x:.2f}" for x in boxes)
            raise CheckError(f"a box of class {labels} is {where}: {at}, score {scores:.4f}")
        agreement.explained[reason] += 1
    agreement.images += 1
    agreement.detections += len(pairs[0])
    if not len(pairs[0]):
        return
    ours, theirs = pairs
    agreement.box = max(agreement.box, largest(found["boxes"][ours], wanted.bboxes[theirs]))
    agreement.score = max(agreement.score, largest(found["scores"][ours], wanted.scores[theirs]))
    if masks is not None:
        difference = largest(found["masks"][ours], masks[theirs])
        agreement.mask = max(agreement.mask, difference)
        if not difference <= MASK:  # NaN is a difference
            raise CheckError(f"a mask differs by {difference:.1e}; expected at most {MASK:.0e}")
        if "pasted" in found:
            boxes, pasted = wanted.bboxes[theirs], found["pasted"][ours].bool()
            least = head.test_cfg.mask_thr_binary
            compare_pasted(pasted, wanted.masks[theirs], masks[theirs], boxes, least)


def largest(x: Tensor, y: Tensor) -> float:
    """Return the largest difference."""
    return float((x - y).abs().max())


def match(found: dict[str, Tensor], wanted: Any) -> tuple[tuple[Tensor, Tensor], list[Any]]:
    """Pair detections of one label whose boxes and scores differ by no more than `BOX`, `SCORE`.

    Returns:
        the indices of the pairs on both sides, and (side, index) of each that is left alone.
    """
    near = (found["boxes"][:, None] - wanted.bboxes).abs().amax(2) <= BOX
    near &= (found["scores"][:, None] - wanted.scores).abs() <= SCORE
    near &= found["labels"][:, None] == wanted.labels
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for ours, row in enumerate(near):
        for theirs in row.nonzero().flatten().tolist():
            if theirs not in taken:
                taken.add(theirs)
                pairs.append((ours, theirs))
                break
    ours_, theirs_ = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(1)
    left = [(0, i) for i in range(len(near)) if i not in set(ours_.tolist())]
    left += [(1, i) for i in range(near.shape[1]) if i not in taken]
    return (ours_, theirs_), left


def explain(own: Any, other: Any, index: int, alone: Tensor, cfg: Any) -> str | None:
    """Say why a detection may be on one side alone: a threshold or a tie; None if nothing does.

    Args:
        own, other: boxes, scores and labels of its own side and of the other.
        index: of the detection on its own side.
        alone: indices of those that are on the other side alone.
        cfg: the head's `test_cfg`.
    """
    box, score, label = (x[index] for x in own)
    if abs(score - cfg.get("score_thr", 0)) <= SCORE:
        return "at the score threshold"
    if len(other[1]) >= cfg.max_per_img and score <= other[1].min() + SCORE:
        return "at the limit of boxes"
    for boxes, scores, labels in (own, other):
        rivals = (labels == label) & (scores >= score - SCORE)
        overlaps = box_iou(box[None], boxes[rivals])[0]
        if bool(((overlaps - cfg.nms.iou_threshold).abs() <= OVERLAP).any()):
            return "at the threshold of the suppression"
    # Of two that overlap, either side has kept another one.
    boxes, scores, labels = (x[alone] for x in other)
    tied = (labels == label) & ((scores - score).abs() <= SCORE)
    if bool((box_iou(box[None], boxes[tied]) > cfg.nms.iou_threshold).any()):
        return "of equal scores"
    return None


def compare_pasted(
    found: Tensor, wanted: Tensor, masks: Tensor, boxes: Tensor, threshold: float
) -> None:
    """Compare masks (n, H, W) of bool; only pixels close to the threshold may differ."""
    close = (paste(masks, boxes, found.shape[1:]) - threshold).abs() <= MASK
    wrong = int(((found != wanted) & ~close).sum())
    if wrong:
        raise CheckError(f"{wrong} pixels of pasted masks differ")
