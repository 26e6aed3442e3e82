"""Check the files and the labels of a data set of MMSegmentation when it is read."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from typing import Any

from mmcv import imfrombytes
from mmcv.transforms import LoadAnnotations, LoadImageFromFile

from ...data.labels import Labels
from ...data.listing import absent_files
from ...data.masks import check_masks, missing_files, passed_over
from ...data.report import Report
from ...errors import DataError
from .base import Guarded, source_of, tell
from .samples import meaning_of, reads_locally, steps

KNOWN = ("mmcv", "mmengine", "mmseg", "mmdet", "mmpretrain", "hire_mlp_mm")


def is_known(step: Any) -> bool:
    """Tell whether a step is of the hosts: what others do to labels, nobody knows."""
    return type(step).__module__.partition(".")[0] in KNOWN


class GuardedMasks(Guarded):
    """Check the files of a data set of mmseg's, or of one that reads as it, and some masks."""

    img_suffix: str
    seg_map_suffix: str
    report: Report | None = None  # of the folders

    def full_init(self) -> None:
        checked = self.was_prepared
        super().full_init()
        if not checked and (report := self.check()) is not None:
            self.report = report
            report.refuse()
            tell(report)

    def check(self) -> Report | None:
        """Check the files of all images, and some masks; None where a run needs no local masks."""
        all_steps = [*steps(self.pipeline)]
        loads = [step for step in all_steps if isinstance(step, LoadAnnotations)]
        images = [step for step in all_steps if isinstance(step, LoadImageFromFile)]
        infos = [self.get_data_info(i) for i in range(len(self))]
        pairs = [(one["img_path"], one["seg_map_path"]) for one in infos if "seg_map_path" in one]
        if not (loads and pairs and all(map(reads_locally, [*loads, *images]))):
            return None
        source = self.data_prefix["seg_map_path"]
        if any("://" in path for path in pairs[0]):
            return None
        if is_known(loads[0]):
            report = check_masks(
                pairs,
                meaning_of(self) if all(map(is_known, all_steps)) else Labels(None),
                source,
                sample=True,
                decode=partial(imfrombytes, flag="unchanged", backend=loads[0].imdecode_backend),
                turns=not any("ignore_orientation" in step.color_type for step in images),
            )
        else:
            absent = absent_files(path for pair in pairs for path in pair)
            report = Report(source, [*missing_files(pairs, source, absent)], images=len(pairs))
        report.skipped += self.passed_over()
        return report

    def passed_over(self) -> Counter[str]:
        """Count the files in the folders that are of no pair; none, where a list names all."""
        if os.path.isfile(self.ann_file) or "://" in self.data_prefix["img_path"]:
            return Counter()
        folders = self.data_prefix["img_path"], self.data_prefix["seg_map_path"]
        return passed_over(*folders, self.img_suffix, self.seg_map_suffix)

    def no_images(self) -> DataError:
        self.report = Report(source_of(self), skipped=self.passed_over())
        return super().no_images()
