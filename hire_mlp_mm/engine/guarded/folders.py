"""Check the class folders, or the list, of a data set of MMPretrain when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.fileio import LocalBackend, get_file_backend

from ...data.folders import check_folders, check_list, class_folders, samples_of
from ...data.report import Report
from .base import Guarded, reading, source_of, tell


class GuardedFolders(Guarded):
    """Check the folders or the list of mmpretrain's CustomDataset, or of one that reads as it.

    Folders that systems and programs leave behind, such as `.ipynb_checkpoints`, are left out; the
    host takes all folders for classes.
    """

    with_label: bool
    extensions: Sequence[str]
    img_prefix: str
    report: Report | None = None  # of the folders or the list
    found_classes: tuple[str, ...] | None = None  # where some folders are left out

    def load_data_list(self) -> list[dict[str, Any]]:
        if not isinstance(get_file_backend(self.img_prefix), LocalBackend):
            return super().load_data_list()
        with reading("annotation file " if self.ann_file else "", source_of(self)):
            self.report = self.check()
        self.report.refuse()
        tell(self.report)
        if self.with_label and not self.ann_file:
            names, left_out = class_folders(self.img_prefix, self.CLASSES)
            if left_out:
                return self.read(names)
        return super().load_data_list()

    def check(self) -> Report:
        """Check the list, or the folders."""
        if self.ann_file:
            return check_list(self.ann_file, self.img_prefix, self.CLASSES, self.with_label)
        return check_folders(self.img_prefix, self.CLASSES, self.extensions, self.with_label)

    def read(self, names: list[str]) -> list[dict[str, Any]]:
        """Read these folders as the host reads all that lie there."""
        self.folder_to_idx = {name: label for label, name in enumerate(names)}
        if self.CLASSES is None:
            self.found_classes = tuple(names)
        samples = samples_of(self.img_prefix, names, self.extensions)
        return [dict(img_path=path, gt_label=label) for path, label in samples]

    @property
    def CLASSES(self) -> tuple[str, ...] | None:  # noqa: N802  the host's name
        """Return the names of the classes, None before the folders are read."""
        return self.found_classes or super().CLASSES

    @property
    def metainfo(self) -> dict[str, Any]:
        """Return what is known of the data set besides its samples."""
        found = {} if self.found_classes is None else dict(classes=self.found_classes)
        return {**super().metainfo, **found}
