"""Say which of a data set's files is wrong: what the guarded data sets of all hosts share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from ...data.report import Report
from ...errors import DataError, UserError, describe, first_line
from .samples import CheckSample, add_checks, failed_step, fault


@contextmanager
def reading(what: str, source: str | None) -> Iterator[None]:
    """Name the annotation file, or folders, that cannot be read."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not source:
            raise
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{error.filename or source} not found") from error
        if isinstance(error, ImportError) or "is not installed" in str(error):
            raise UserError(first_line(error)) from error  # a package that the format needs
        raise DataError(f"{what}{source} cannot be read: {describe(error)}") from error


def empty_dataset(host: type) -> Any:
    """Make an empty data set for pickle, which finds no class of ours by its name."""
    from . import guard_dataset  # which is made of this file's classes

    guarded = guard_dataset(host)
    return guarded.__new__(guarded)


# Functions, for the data sets are other people's classes, which may have names of their own.
def source_of(dataset: Any) -> str:
    """Return the annotation file of a data set, or else its folders."""
    prefixes: Any = dataset.data_prefix
    folders = prefixes.values() if isinstance(prefixes, dict) else [prefixes]
    return dataset.ann_file or " and ".join(str(folder) for folder in folders if folder)


def losses_of(dataset: Any) -> str:
    """Count what is left out of a data set, by reason, where its annotation file was checked."""
    report: Report | None = getattr(dataset, "report", None)
    return "" if report is None else report.losses()


def tell(report: Report) -> None:
    """Write into the log what a data set has, what is left out, and what may be wrong."""
    found = [name for name, number in report.per_class.items() if number]
    classes = f" of {len(found)} classes" if report.per_class else ""
    line = f"{report.source}: {report.images} images{classes}{report.losses()}"
    print_log(line, logger="current")
    warn(report)


def warn(report: Report) -> None:
    """Write into the log what may be wrong with a data set."""
    for note in report.notes:
        print_log(f"{report.source}{note}", logger="current", level=WARNING)


class Guarded(BaseDataset):
    """Say which of a data set's files is wrong; mixed into a host's class."""

    host: type[BaseDataset]
    refused = 0  # images in a row, by the pipeline
    replaced = 0  # unreadable images, by the host's `ignore_empty`
    was_read = False  # the annotation file
    was_prepared = False

    def __reduce__(self) -> Any:
        return empty_dataset, (self.host,), self.__dict__

    def load_data_list(self) -> list[dict[str, Any]]:
        with reading("annotation file " if self.ann_file else "", source_of(self)):
            data_list = list(super().load_data_list())
        self.was_read = True
        return data_list

    def full_init(self) -> None:
        try:
            super().full_init()
        except Exception as error:
            if isinstance(error, UserError) or not self.was_read or self.data_list:
                raise
            raise self.no_images() from error
        if len(self) == 0:
            raise self.no_images()
        if not self.was_prepared:
            self.was_prepared = True
            self.replaces = add_checks(self.pipeline, CheckSample(self)) and not self.test_mode

    def no_images(self) -> DataError:
        """Make the error of a data set that has no images left."""
        return DataError(f"{source_of(self)}: no images for {type(self).__name__}{losses_of(self)}")

    def prepare_data(self, idx: int) -> Any:
        sample = None
        try:
            sample = super().prepare_data(idx)
        except Exception as error:
            step = failed_step(error, self.pipeline)
            line = f"{self.path(idx)}: {fault(error, step, self.get_data_info(idx))}"
            if isinstance(error, FileNotFoundError):
                line = f"{error.filename or self.path(idx)} not found"
            if not (self.replaces and isinstance(step, LoadImageFromFile)):
                raise DataError(line) from error
            self.replaced += 1
            line += f"; replaced by another image ({self.replaced} times so far, in this process)"
            print_log(line, logger="current", level=WARNING)
        self.refused = 0 if sample is not None else self.refused + 1
        if self.refused > self.max_refetch:
            raise DataError(
                f"{self.path(idx)}: the pipeline has refused {self.refused} images in a row"
            )
        return sample

    def path(self, idx: int) -> str:
        """Return the file of an image."""
        return str(self.get_data_info(idx).get("img_path", f"image {idx} of {source_of(self)}"))
