"""Choose from the hosts' data samples, and turn them into plain results."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..errors import UserError
from .results import NO_CLASS, Choice, first_classes, instances, label_map


def pick(sample: Any, choice: Choice) -> Any:
    """Leave in a data sample what is wanted of it, the best first, scores and boxes in float32.

    Raises:
        UserError: it holds none of the predictions that there are results for.
    """
    if "pred_instances" in sample:
        found = sample.pred_instances
        for key, value in list(found.items()):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(found, key, value.float())
        order = choice.order(found.scores.numpy(), found.labels.numpy())
        sample.pred_instances = found[torch.from_numpy(order)]
    elif "pred_sem_seg" in sample:
        sample.pop("seg_logits", None)  # a map for each class
        labels = sample.pred_sem_seg.data
        sample.pred_sem_seg.data = labels.masked_fill(~has(choice, labels), NO_CLASS)
    elif "pred_score" in sample:
        scores = sample.pred_score.float()
        wanted = has(choice, torch.arange(len(scores)))
        sample.set_pred_score(scores)
        sample.set_pred_label(scores.masked_fill(~wanted, -torch.inf).argmax().reshape(1))
    else:
        kinds = ", ".join(key for key in sample.all_keys() if key.startswith("pred")) or "nothing"
        raise UserError(f"the model gives {kinds}; expected boxes, a map of classes, or a class")
    return sample


def has(choice: Choice, labels: torch.Tensor) -> torch.Tensor:
    """Tell which of some labels are wanted."""
    return torch.from_numpy(choice.has(labels.numpy())).bool()


def results_of(sample: Any, classes: list[str], choice: Choice) -> Any:
    """Return the results of a data sample that `pick` has made; see `base.Prediction`."""
    if "pred_instances" in sample:
        found = sample.pred_instances
        masks = np.asarray(found.masks, dtype=bool) if "masks" in found else None
        given = (found.scores.numpy(), found.labels.numpy(), masks)
        return instances(corners(found).numpy(), *given, classes)
    if "pred_sem_seg" in sample:
        return label_map(sample.pred_sem_seg.data[0].numpy(), len(classes))
    return first_classes(sample.pred_score.numpy(), classes, choice)


def corners(found: Any) -> torch.Tensor:
    """Return boxes (N, 4) as x1, y1, x2, y2; those of the masks where a model gives no others."""
    if "masks" in found and not ("bboxes" in found and found.bboxes.any()):
        from mmdet.structures.mask import mask2bbox

        return mask2bbox(torch.as_tensor(found.masks))
    return found.bboxes
