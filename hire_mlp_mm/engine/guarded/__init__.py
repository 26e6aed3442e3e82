"""Guard the hosts' data sets and metrics: name the file that is wrong, and count what is skipped.

OpenMMLab's data sets drop what they cannot use without a word, and some of what they do not drop
makes a wrong figure: a JPEG that ends early is grey from there on (OpenCV before 4.11), a mask of
another size is reshaped, a category list in another order gives names to the wrong labels.

A config names a guarded class by this package's scope: `hire_mlp_mm.CocoDataset` is the class that
`CocoDataset` names there.
"""

from __future__ import annotations

import functools
from typing import Any

from mmengine.dataset import BaseDataset

from ...registry import DATASETS, METRICS
from .base import Guarded
from .coco import GuardedCoco, whole_truth
from .folders import GuardedFolders
from .masks import GuardedMasks


@functools.cache
def guard_dataset(host: Any) -> Any:
    """Return a data set's class with checks; as it is, where it does not read files as mmengine."""
    if not isinstance(host, type) or not issubclass(host, BaseDataset):
        return host
    base, read = Guarded, getattr(host, "load_data_list", None)
    if hasattr(host, "COCOAPI"):
        from mmdet.datasets import CocoDataset

        if read is CocoDataset.load_data_list:  # not in a way of its own
            base = GuardedCoco
    elif hasattr(host, "get_label_map"):  # mmseg's, and one of mmdet's
        base = GuardedMasks
    elif hasattr(host, "is_valid_file"):
        from mmpretrain.datasets import CustomDataset

        if read is CustomDataset.load_data_list:
            base = GuardedFolders
    return type(host.__name__, (base, host), dict(host=host, __doc__=host.__doc__))


@functools.cache
def guard_metric(host: Any) -> Any:
    """Return a metric's class that checks its annotation file and names it in its errors."""

    class Metric(host):
        __doc__ = host.__doc__

        def __init__(self, *args: Any, **options: Any) -> None:
            with whole_truth(host, options) as whole:
                super().__init__(*args, **whole)

    Metric.__name__ = Metric.__qualname__ = host.__name__
    return Metric


DATASETS.guard, METRICS.guard = guard_dataset, guard_metric
