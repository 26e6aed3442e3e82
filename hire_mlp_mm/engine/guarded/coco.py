"""Check and count the COCO files of data sets and evaluators of MMDetection."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.fileio import get_local_path
from mmengine.logging import print_log

from ...data.coco import check_coco, complete_coco, number_annotations, read_coco
from ...data.coco.files import faults_of_files, note_of_turned
from ...data.report import Report
from ...errors import DataError
from .base import Guarded, reading, warn
from .samples import reads_locally, steps


class GuardedCoco(Guarded):
    """Check and count the COCO file of a data set of mmdet's, or one like it."""

    COCOAPI: Any
    report: Report | None = None  # of the file, where it is of COCO's format

    def full_init(self) -> None:
        checked = self.was_prepared
        super().full_init()
        if not checked and self.report is not None:
            report = self.report
            counts = f"{len(self)} of {report.images} images, {report.empty} without boxes"
            print_log(f"{report.source}: {counts}{report.losses()}", logger="current")
            warn(report)

    def filter_data(self) -> list[dict[str, Any]]:
        kept: list[dict[str, Any]] = super().filter_data()
        loads = [step for step in steps(self.pipeline) if isinstance(step, LoadImageFromFile)]
        if loads and all(reads_locally(step) and not step.ignore_empty for step in loads):
            paths = [info["img_path"] for info in kept]
            for fault in faults_of_files(paths, self.data_prefix.get("img", "")):
                raise DataError(f"{self.ann_file}{fault}")
            turns = not any("ignore_orientation" in step.color_type for step in loads)
            if turns and self.report is not None:
                self.report.notes += note_of_turned(paths)
        return kept

    def load_data_list(self) -> list[dict[str, Any]]:
        from mmdet.datasets.api_wrappers import COCO

        if type(self).COCOAPI is not COCO:  # panoptic files and others hold something else
            return super().load_data_list()

        if "img" not in self.data_prefix:
            named = ", ".join(map(repr, self.data_prefix))
            raise DataError(
                f"{self.ann_file}: the data set's data_prefix has {named or 'no key'}; expected "
                "'img', the folder of the images"
            )

        def read(path: str) -> Any:
            content = read_coco(path, self.ann_file)
            self.report = check(self, content)
            self.report.refuse()
            return indexed(content)

        self.COCOAPI = read
        try:
            data_list = super().load_data_list()
        finally:
            del self.COCOAPI
        return data_list


def indexed(content: dict[str, Any]) -> Any:
    """Make pycocotools' index of the content of a COCO file, with mmdet's names for it."""
    from mmdet.datasets.api_wrappers import COCO

    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
    return coco


def check(dataset: Any, content: Any) -> Report:
    """Check the content of a data set's COCO file as its pipeline and filter use it."""
    found = [step for step in steps(dataset.pipeline) if isinstance(step, LoadAnnotations)]
    loads = [step for step in found if getattr(step, "with_mask", False)]
    filters = dataset.filter_cfg or {}
    return check_coco(
        content,
        dataset.ann_file,
        classes=dataset.metainfo["classes"],
        use="predict" if dataset.test_mode else "train",
        masks=bool(loads),
        polygons_alone=any(not getattr(step, "poly2mask", True) for step in loads),
        may_be_empty=filters.get("filter_empty_gt") is False,
        min_size=filters.get("min_size", 0),
    )


def reads_coco(metric: Any) -> bool:
    """Tell whether a class of evaluators is mmdet's CocoMetric, or one that reads its files."""
    if not hasattr(metric, "gt_to_coco_json"):
        return False
    from mmdet.evaluation import CocoMetric, LVISMetric

    return issubclass(metric, CocoMetric) and not issubclass(metric, LVISMetric)


@contextmanager
def whole_truth(host: Any, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Check the COCO file of an evaluator; give the options of one that has all it needs.

    What fails in the evaluator after that is not the file's fault; of files of other formats, it
    is.
    """
    source = options.get("ann_file")
    if not (source and reads_coco(host)):
        with reading("annotation file ", source):
            yield options
        return
    with (
        reading("annotation file ", source),
        get_local_path(source, backend_args=options.get("backend_args")) as path,
    ):
        content = read_coco(path, source)
        with open(path, "rb") as file:
            marked = file.read(1) not in b"{ \t\r\n"  # by its encoding, which pycocotools refuses
    changed = bool(complete_coco(content)) or marked
    metrics = options.get("metric", "bbox")
    report = check_coco(
        content,
        source,
        use="predict" if options.get("format_only") else "evaluate",
        masks="segm" in ([metrics] if isinstance(metrics, str) else metrics),
        classwise=options.get("classwise", False) and not options.get("sort_categories", False),
    )
    report.refuse()
    warn(report)
    if not (number_annotations(content) or changed):
        yield options
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "annotations.json")
        whole.write_text(json.dumps(content))
        yield {**options, "ann_file": str(whole), "backend_args": None}
