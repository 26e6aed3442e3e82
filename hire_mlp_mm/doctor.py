"""Examine an environment: what is installed, what works, and what cures the rest.

It has to work where nothing else does, without torch or with a broken mmengine. So only the
standard library is imported here: versions come from the installed metadata, and whatever is to be
imported is imported by another process (`probe.py`).
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

OK, NOTE, FAULT = "ok", "note", "fault"
HERE = Path(__file__).parent
CONFIGS = HERE / ".mim" / "configs" / "_base_"
SECONDS = 300  # for all imports
LITE = "pip install 'hire_mlp_mm[lite]'"
MMCV = "pip install 'mmcv-lite>=2.1,<2.2'"
CV2 = "opencv-python-headless opencv-python opencv-contrib-python-headless opencv-contrib-python"
# The distributions that own a package's folder; the first one stays where several are installed.
OWNERS = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "numpy": ("numpy",),
    "setuptools": ("setuptools",),
    "cv2": tuple(CV2.split()),
    "mmengine": ("mmengine", "mmengine-lite", "onedl-mmengine"),
    "mmcv": ("mmcv-lite", "mmcv", "mmcv-full", "onedl-mmcv"),
    "mmdet": ("mmdet", "onedl-mmdetection"),
    "mmseg": ("mmsegmentation", "onedl-mmsegmentation"),
    "mmpretrain": ("mmpretrain", "onedl-mmpretrain"),
}
HOSTS = {"mmdet": "detection", "mmseg": "segmentation", "mmpretrain": "classification"}
# Upstream's releases: the mmcv that each takes, from, and below.
TAKES_MMCV = {"mmdet": ("2.0.0", "2.2.0"), "mmsegmentation": ("2.0.0", "2.2.0")}
UNDECLARED = ("ftfy", "regex")  # by MMSegmentation, which imports them
# The first version that upstream's releases do not take, and why.
TOO_NEW = {
    "numpy": (2, "OpenMMLab's own releases are older than numpy 2"),
    "setuptools": (82, "mmengine can't read mmdet::NAME without pkg_resources"),
    "transformers": (5, "mmpretrain can't be imported beside it"),
}


@dataclass(frozen=True)
class Finding:
    """Describe one thing that was looked at."""

    name: str
    text: str
    level: str = OK  # NOTE for what no recipe minds, FAULT for what keeps recipes from running
    cure: str = ""  # the command that cures it, if there is one
    more: Mapping[str, Any] | None = None  # the same for programs: versions, lists, paths


def examine(
    paths: Sequence[str] | None = None, probed: dict[str, Any] | None = None
) -> list[Finding]:
    """Examine the environment of this Python.

    Args:
        paths: where to look for installed distributions; None for where Python looks.
        probed: what `probe` found; None to have it look.

    Returns:
        A `Finding` for each thing, in the order in which people want to read them.
    """
    stack = Stack(installed(paths), probe() if probed is None else probed)
    return [python(), *stack.packages(), *stack.ops(), *data_roots(), *stack.weights()]


def is_well(findings: Sequence[Finding]) -> bool:
    """Tell whether nothing keeps a recipe from running."""
    return all(finding.level != FAULT for finding in findings)


def installed(paths: Sequence[str] | None = None) -> dict[str, str]:
    """List the installed distributions: version by normalised name."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions(path=list(sys.path if paths is None else paths)):
        name = distribution.metadata["Name"]  # None in a folder that an uninstall left behind
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def number(version: str) -> tuple[int, ...]:
    """Read the numbers of a version, as far as they go: 2.1.0rc1 is (2, 1, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)


def probe() -> dict[str, Any]:
    """Import everything in another process, which may fail or crash, and return what it saw."""
    command = [sys.executable, "-W", "ignore", str(HERE / "probe.py"), json.dumps(sys.path)]
    command.append(str(HERE.parent))
    seen: dict[str, Any] = {}
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=SECONDS
        )
        output, end = done.stdout, f"the process that imported it ended with {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output, end = str(error.stdout or b"", "utf-8"), f"not imported in {SECONDS} s"
    for line in output.splitlines():
        if line.startswith("PROBE "):
            seen.update(json.loads(line.removeprefix("PROBE ")))
    if "begun" in seen:
        seen.setdefault(seen["begun"], dict(error=end))
    return seen


# Findings ----------------------------------------------------------------------------------------


def python() -> Finding:
    """Look at Python; the stacks are made for 3.10 to 3.12."""
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return Finding("Python", platform.python_version())
    text = f"{platform.python_version()}; OpenMMLab is made for 3.10 to 3.12"
    return Finding("Python", text, NOTE)


@dataclass
class Stack:
    """Look at packages."""

    versions: Mapping[str, str]  # see `installed`
    seen: Mapping[str, Any]  # see `probe`

    def owners(self, package: str) -> list[str]:
        """List the installed distributions that own a package's folder."""
        return [name for name in OWNERS[package] if name in self.versions]

    def packages(self) -> Iterator[Finding]:
        """Look at OpenMMLab's packages, and at those that they stand on."""
        compiled = self.seen.get("ops", {}).get("compiled", "mmcv" in self.versions)
        yield self.package("torch", FAULT)
        yield self.package("torchvision", FAULT if self.owners("mmcv") and not compiled else NOTE)
        for name, (limit, reason) in TOO_NEW.items():
            version = self.versions.get(name)
            # Only new versions of setuptools may be left out.
            wrong = name == "setuptools" if version is None else number(version) >= (limit,)
            if wrong and "mmengine" in self.versions:
                text = f"{version or 'missing'}; {reason}"
                yield Finding(name, text, NOTE, f"pip install '{name}<{limit}'")
            elif version:
                yield Finding(name, version)
        if self.owners("cv2"):
            yield self.package("cv2", NOTE)
        if not any(self.owners(name) for name in ("mmengine", "mmcv", *HOSTS)):
            text = "not installed: HireMLPNet works, recipes need it"
            yield Finding("OpenMMLab", text, FAULT, LITE)
            return
        yield self.package("mmengine", FAULT)
        yield self.package("mmcv", FAULT)
        missing = NOTE if any(self.owners(name) for name in HOSTS) else FAULT
        for name, task in HOSTS.items():
            yield self.package(name, missing, f"not installed: for {task}")

    def package(self, name: str, missing: str, text: str = "not installed") -> Finding:
        """Look at one package; `missing` is the level, and `text` the words, if it is missing."""
        own = self.owners(name)
        if not own:
            cure = MMCV if name == "mmcv" else f"pip install {OWNERS[name][0]}"
            return Finding(name, text, missing, cure)
        version = self.versions[own[0]]
        text = version + ("" if own[0] in (name, "mmsegmentation") else f" ({own[0]})")
        more = dict(distributions={owner: self.versions[owner] for owner in own})
        if len(own) > 1:
            both = " and ".join(f"{owner} {self.versions[owner]}" for owner in own)
            cure = f"pip uninstall -y {' '.join(own)} && pip install {own[0]}=={version}"
            level = NOTE if name == "cv2" else FAULT
            return Finding(name, f"{both} own one folder", level, cure, more)
        for fault, cure in self.faults(name, own[0]):
            return Finding(name, f"{text} {fault}", FAULT, cure, more)
        device = self.seen.get(name, {}).get("device")
        return Finding(name, f"{text}, {device}" if device else text, OK, "", more)

    def faults(self, name: str, own: str) -> Iterator[tuple[str, str]]:
        """Yield what keeps a package from working, and the cure."""
        mmcv = next((self.versions[owner] for owner in self.owners("mmcv")), None)
        if own in TAKES_MMCV and mmcv:
            least, below = TAKES_MMCV[own]
            if not number(least) <= number(mmcv) < number(below):
                yield f"refuses mmcv {mmcv}; it takes {least} to below {below}", MMCV
        undeclared = [other for other in UNDECLARED if other not in self.versions]
        if own.endswith("mmsegmentation") and undeclared:
            yield f"needs {' and '.join(undeclared)}", f"pip install {' '.join(undeclared)}"
        if error := self.seen.get(name, {}).get("error"):
            lacking = re.search(r"No module named '(\w+)", error)
            cure = f"pip install --force-reinstall --no-deps {own}"
            if lacking and lacking[1] not in OWNERS:
                cure = f"pip install {lacking[1]}"
            if lacking and lacking[1] == "pkg_resources":
                cure = "pip install 'setuptools<82'"
            yield f"can't be imported: {error}", cure

    def ops(self) -> Iterator[Finding]:
        """Look at mmcv's ops: compiled, stood in for, or missing."""
        if "ops" not in self.seen:
            return
        found = self.seen["ops"]
        # An op is named by what it does: nms, roi_align, deform_conv.
        names = [re.sub(r"_(forward|backward)(_\w+)?$", "", op) for op in found["stood_in"]]
        text = f"not compiled; torchvision stands in for {', '.join(dict.fromkeys(names))}; "
        text += f"{len(found['missing'])} are missing"
        if found["compiled"]:
            text = f"{len(found['compiled'])} compiled"
        yield Finding("mmcv's ops", text, OK, "", found)

    def weights(self) -> Iterator[Finding]:
        """Look for the published weights in the cache; the others are fetched when needed."""
        found = self.seen.get("weights", {})
        parts = []
        for words, cached in (("in the cache", True), ("fetched when needed", False)):
            names = [name for name, weights in found.items() if weights["found"] == cached]
            parts += [f"{words}: {', '.join(names)}"] if names else []
        if found:
            yield Finding("weights", "; ".join(parts), OK, "", found)


def data_roots() -> Iterator[Finding]:
    """Look for the data that the recipes read; where there is none is no fault."""
    roots: dict[str, str] = {}
    for path in sorted(CONFIGS.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        roots.update(re.findall(r"\{\{\$(\w+):([^}]*)\}\}", text))
    roots.pop("SHAPES_ROOT", None)  # the demo's, which makes them
    for variable, default in sorted(roots.items()):
        folder = os.environ.get(variable) or default
        more = dict(folder=folder, found=os.path.isdir(folder))
        finding = Finding(f"${variable}", folder, OK, "", more)
        if not more["found"]:
            cure = f"export {variable}=FOLDER"
            finding = Finding(f"${variable}", f"{folder} not found", NOTE, cure, more)
        yield finding
