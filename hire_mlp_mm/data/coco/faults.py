"""Find what must not be trained or tested in the records of a COCO file, box by box.

Each function yields what is wrong, for a line that begins with the name of the file.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..report import few, near
from .values import FIELDS, LIMIT, Record, is_box, is_number, kind_of, said, sides

ORDER = "(metainfo.classes, in the file's order)"
IDS = {"a number", "text"}  # kinds of them
UNPRINTABLE = re.compile(r"[\x00-\x1f\ud800-\udfff]")  # line ends, and halves of characters
LINKS = {"images": "image_id", "categories": "category_id", "annotations": ""}
CALLED = {"images": ("files", "file_name"), "categories": ("names", "name"),
          "annotations": ("of the images", "image_id")}  # fmt: skip


def of_lists(content: Any, use: str, may_be_empty: bool) -> Iterator[str]:
    """Find a file of another kind, or one in which there is nothing."""
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], dict) else {}
        what = "predictions (a list of results)" if "score" in first else "a list"
        yield f" holds {what}; expected COCO's annotations, with a list 'images'"
        return
    for key in FIELDS:
        found = content.get(key) if isinstance(content, dict) else None
        if key == "annotations" and key not in content and (use == "predict" or may_be_empty):
            continue
        if not isinstance(found, list):
            yield f": expected COCO's format, with a list {key!r}"
            return
        if not found and key != "annotations":
            yield f": the list {key!r} is empty"
        elif not found and use == "evaluate":
            yield ": the list 'annotations' is empty: there is nothing to evaluate"
        elif not found and use == "train" and not may_be_empty:
            yield (
                ": the list 'annotations' is empty: there is nothing to learn; if images without "
                "boxes are meant, set filter_cfg=dict(filter_empty_gt=False)"
            )


def of_records(records: Iterable[Any], key: str, fields: tuple[str, ...]) -> Iterator[str]:
    """Find records that are none, or lack a field."""
    for place, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            yield f": entry {place} of {key!r} is {said(record)}; expected a record in braces"
        elif missing := [name for name in fields if record.get(name) is None]:
            number = record.get("id", "without id")
            yield f": record {said(number)} of {key!r} lacks {', '.join(missing)}"


def of_ids(content: Record) -> Iterator[str]:
    """Find ids that are none, that are double, or of another type than those they stand for."""
    annotations = content.get("annotations", [])
    for key, link in LINKS.items():
        records = content.get(key, [])
        kinds = Counter(kind_of(one["id"]) for one in records)
        usual = max(kinds, key=lambda kind: kinds[kind], default="")
        for one in records if kinds.keys() - IDS or len(kinds) > 1 else ():
            if fault := fault_of_id(one["id"], usual, key):
                yield f": a record of {key!r} has the id {fault}"
        for one in annotations if link else ():
            if kind_of(one[link]) != usual:
                fault = fault_of_id(one[link], usual, key)
                yield f": annotation {said(one['id'])} has the {link} {fault}"
        yield from of_double(records, key)


def fault_of_id(value: Any, usual: str, key: str) -> str:
    """Say what is wrong with an id where others are of some kind; nothing if it is of that."""
    kind = kind_of(value)
    if kind not in IDS:
        return f"{said(value)}; expected a number or text"
    if kind != usual:
        return f"{said(value)}, {kind}, where the ids of {key!r} are {usual}: write all alike"
    return ""


def of_double(records: Sequence[Record], key: str) -> Iterator[str]:
    """Find records with the id of another one."""
    what, name = CALLED[key]
    seen: dict[Any, Record] = {}
    for one in records:
        if kind_of(one["id"]) not in IDS:
            continue
        other = seen.setdefault(one["id"], one)
        if other is not one:
            yield (
                f": two records of {key!r} have the id {said(one['id'])} ({what} "
                f"{said(other[name])} and {said(one[name])}); give each an id of its own"
            )


def of_images(images: Sequence[Record]) -> Iterator[str]:
    """Find sizes that are none, and two records of one file."""
    seen: dict[str, Any] = {}
    for one in images:
        number, name = said(one["id"]), one["file_name"]
        if not all(type(side) is int and 0 < side < LIMIT for side in sides(one)):
            found = f"{said(one['width'])} x {said(one['height'])}"
            yield f": image {number} has the size {found}; expected width x height in pixels"
        if not isinstance(name, str) or not name or UNPRINTABLE.search(name):
            yield f": image {number} has the file_name {said(name)}; expected the name of a file"
            continue
        path = posixpath.normpath(name)
        if path in seen:
            yield (
                f": the images {said(seen[path])} and {number} are one file, {name}; put its "
                "annotations under one of them"
            )
        seen.setdefault(path, one["id"])


def of_names(categories: Sequence[Record], classes: Sequence[str] | None) -> Iterator[str]:
    """Find names that are none or double, or do not agree with a config's classes."""
    names = [one["name"] for one in categories]
    for one in categories:
        if not isinstance(one["name"], str):
            yield f": category {said(one['id'])} has the name {said(one['name'])}; expected text"
            return
    if isinstance(classes, str):
        yield f": metainfo.classes is the text {classes!r}; write ({classes!r},)"
        return
    if classes is not None and not (classes and all(isinstance(name, str) for name in classes)):
        yield f": metainfo.classes is {classes!r}; write the names of the classes as text"
        return
    # mmdet numbers labels in the file's order and names them in that of the classes.
    wanted = names if classes is None else [*classes]
    found = [name for name in names if name in wanted]
    for name, times in Counter(found).items():
        if times > 1:
            ids = [one["id"] for one in categories if one["name"] == name]
            yield f": the categories {few(map(said, ids))} are all called {name!r}; rename one"
            return
    if missing := [name for name in wanted if name not in names]:
        hint = near_names(missing, names)
        yield f" has no category {few(missing)}, which the config's classes name {ORDER}{hint}"
    elif found != wanted:
        yield f" has the categories {few(found)}; expected the config's {few(wanted)} {ORDER}"


def of_order(categories: Sequence[Record]) -> Iterator[str]:
    """Find an order of the categories in which an evaluation gives their figures to others.

    pycocotools sorts the ids, and mmdet's `classwise` names the figures in the file's order.
    """
    ids = [one["id"] for one in categories]
    if any(kind_of(one) != "a number" for one in ids) or ids != sorted(ids):
        yield (
            ": the figures of classwise=True would be those of other classes; expected categories "
            "in the order of their ids, which are numbers: sort them here and in the data sets' "
            "files, or leave out classwise"
        )


def near_names(missing: Sequence[str], names: Sequence[str]) -> str:
    """Say which name of the file may be meant by a class that it lacks."""
    for name in map(str, missing):
        if other := near(name, names):
            return f"; it has {other!r} where the config has {name!r}"
    return ""


def of_values(annotations: Sequence[Record]) -> Iterator[str]:
    """Find boxes, areas and flags that are none; `ignore` may be missing."""
    for one in annotations:
        if not is_box(one["bbox"]):
            yield (
                f": annotation {said(one['id'])} has the box {said(one['bbox'])}; expected x, y, "
                "width and height"
            )
        if not is_number(one["area"], 1e10):  # which is also where pycocotools stops to count
            yield (
                f": annotation {said(one['id'])} has the area {said(one['area'])}; expected a "
                "number of pixels"
            )
        for key in ("iscrowd", "ignore"):
            value = one.get(key)
            if value is not None and (type(value) not in (int, bool) or value != bool(value)):
                found = f"has the {key} {said(value)}; expected 0 or 1"
                yield f": annotation {said(one['id'])} {found}"
