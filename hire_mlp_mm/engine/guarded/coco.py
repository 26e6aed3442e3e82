"""Check and count the COCO file of a data set of MMDetection."""

from __future__ import annotations

from typing import Any

from ...data.coco import check_coco, count_skipped
from .base import Guarded


class GuardedCoco(Guarded):
    """Check and count the COCO file of a data set of mmdet's, or one like it."""

    COCOAPI: Any

    def load_data_list(self) -> list[dict[str, Any]]:
        from mmdet.datasets.api_wrappers import COCO

        if type(self).COCOAPI is not COCO:  # panoptic files and others hold something else
            return super().load_data_list()
        content: dict[str, Any] = {}

        def read(path: str) -> Any:
            coco = COCO(path)
            content.update(coco.dataset)
            check_coco(content, self)
            return coco

        self.COCOAPI = read
        try:
            data_list = super().load_data_list()
        finally:
            del self.COCOAPI
        self.images = len(data_list)
        self.background = sum(not info["instances"] for info in data_list)
        self.skipped = count_skipped(content, self)
        return data_list
