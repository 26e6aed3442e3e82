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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

OK, NOTE, FAULT = "ok", "note", "fault"
HERE = Path(__file__).parent
CONFIGS = HERE / ".mim" / "configs" / "_base_"
SECONDS = 300  # for all imports
LITE = "pip install 'hire_mlp_mm[lite]'"
MMCV = "pip install 'mmcv-lite>=2.1,<2.2'"
# The distributions that own a package's folder; the first one stays where several are installed.
OWNERS = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "numpy": ("numpy",),
    "setuptools": ("setuptools",),
    "cv2": (
        "opencv-python-headless",
        "opencv-python",
        "opencv-contrib-python-headless",
        "opencv-contrib-python",
    ),
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


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        text: what was found.
        level: `ok`, `note` for what no recipe minds, `fault` for what keeps recipes from running.
        cure: the command that cures it, if there is one.
        more: the same for programs: versions, lists, paths.
    """

    name: str
    text: str
    level: str = OK
    cure: str = ""
    more: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON takes."""
        return asdict(self)


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
    versions = installed(paths)
    seen = probe() if probed is None else probed
    findings = [python(), *libraries(versions, seen), *hosts(versions, seen)]
    findings += [ops(seen)] if "ops" in seen else []
    return [*findings, *data_roots(), *weight_files(seen)]


def is_well(findings: Sequence[Finding]) -> bool:
    """Tell whether nothing keeps a recipe from running."""
    return all(one.level != FAULT for one in findings)


# What is installed -------------------------------------------------------------------------------


def installed(paths: Sequence[str] | None = None) -> dict[str, str]:
    """List the installed distributions: version by normalised name."""
    found: dict[str, str] = {}
    for one in metadata.distributions(path=list(sys.path if paths is None else paths)):
        name = one.metadata["Name"]  # None in a folder that an uninstall left behind
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), one.version)
    return found


def owners(package: str, versions: Mapping[str, str]) -> list[str]:
    """List the installed distributions that own a package's folder."""
    return [name for name in OWNERS[package] if name in versions]


def number(version: str) -> tuple[int, ...]:
    """Read the numbers of a version, as far as they go: 2.1.0rc1 is (2, 1, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else (0,)


def probe() -> dict[str, Any]:
    """Import everything in another process, which may fail or crash, and return what it saw."""
    command = [sys.executable, "-W", "ignore", str(HERE / "probe.py"), json.dumps(sys.path)]
    seen: dict[str, Any] = {}
    try:
        done = subprocess.run(
            [*command, str(HERE.parent)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        said, end = done.stdout, f"the process that imported it ended with {done.returncode}"
    except subprocess.TimeoutExpired as error:
        said, end = str(error.stdout or b"", "utf-8"), f"not imported in {SECONDS} s"
    for line in said.splitlines():
        if line.startswith("PROBE "):
            seen.update(json.loads(line.removeprefix("PROBE ")))
    if "begun" in seen:
        seen.setdefault(seen["begun"], dict(error=end))
    return seen


# Findings ----------------------------------------------------------------------------------------


def python() -> Finding:
    """Look at Python; the stacks are made for 3.10 to 3.12."""
    fits = (3, 10) <= sys.version_info[:2] <= (3, 12)
    text = platform.python_version() + ("" if fits else "; OpenMMLab is made for 3.10 to 3.12")
    return Finding("Python", text, OK if fits else NOTE)


def libraries(versions: Mapping[str, str], seen: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at what the hosts stand on."""
    yield package("torch", versions, seen, cure="pip install torch", missing=FAULT)
    lite = not seen.get("ops", {}).get("compiled", "mmcv" in versions)
    needed = FAULT if lite and owners("mmcv", versions) else NOTE
    yield package("torchvision", versions, seen, cure="pip install torchvision", missing=needed)
    upstream = "mmengine" in versions
    if numpy := versions.get("numpy"):
        if upstream and number(numpy) >= (2,):
            text = f"{numpy}; OpenMMLab's own releases are older than numpy 2"
            yield Finding("numpy", text, NOTE, "pip install 'numpy<2'")
        else:
            yield Finding("numpy", numpy)
    tools = versions.get("setuptools")
    if upstream and (tools is None or number(tools) >= (82,)):
        text = f"{tools or 'missing'}; mmengine can't read mmdet::NAME without pkg_resources"
        yield Finding("setuptools", text, NOTE, "pip install 'setuptools<82'")
    elif tools:
        yield Finding("setuptools", tools)
    if owners("cv2", versions):
        yield package("cv2", versions, seen, cure="pip install opencv-python-headless")


def hosts(versions: Mapping[str, str], seen: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at OpenMMLab's packages."""
    if not any(owners(name, versions) for name in ("mmengine", "mmcv", *HOSTS)):
        text = "not installed: HireMLPNet works, recipes need it"
        yield Finding("OpenMMLab", text, FAULT, LITE)
        return
    yield package("mmengine", versions, seen, cure="pip install mmengine", missing=FAULT)
    yield package("mmcv", versions, seen, cure=MMCV, missing=FAULT)
    some = any(owners(name, versions) for name in HOSTS)
    for name, task in HOSTS.items():
        text = f"not installed: for {task}"
        cure = f"pip install {OWNERS[name][0]}"
        yield package(name, versions, seen, cure, NOTE if some else FAULT, text)


def package(
    name: str,
    versions: Mapping[str, str],
    seen: Mapping[str, Any],
    cure: str,
    missing: str = NOTE,
    text: str = "not installed",
) -> Finding:
    """Look at one package: who owns it, whether it takes its neighbours, whether it is imported.

    Args:
        name: as it is imported.
        versions: see `installed`.
        seen: see `probe`.
        cure: what installs it.
        missing: level where it is not installed.
        text: said where it is not installed.
    """
    own = owners(name, versions)
    if not own:
        return Finding(name, text, missing, cure)
    label = own[0] if own[0] not in (name, "mmsegmentation") else ""
    text = versions[own[0]] + (f" ({label})" if label else "")
    more = dict(distributions={one: versions[one] for one in own})
    if len(own) > 1:
        both = " and ".join(f"{one} {versions[one]}" for one in own)
        cure = f"pip uninstall -y {' '.join(own)} && pip install {own[0]}=={versions[own[0]]}"
        level = NOTE if name == "cv2" else FAULT
        return Finding(name, f"{both} own one folder", level, cure, more)
    if refused := refusal(own[0], versions):
        return Finding(name, f"{text} {refused[0]}", FAULT, refused[1], more)
    result = seen.get(name, {})
    if error := result.get("error"):
        return Finding(
            name, f"{text} can't be imported: {error}", FAULT, again(own[0], error), more
        )
    if device := result.get("device"):
        text = f"{text}, {device}"
    return Finding(name, text, OK, "", more)


def refusal(own: str, versions: Mapping[str, str]) -> tuple[str, str] | None:
    """Tell why a distribution refuses its neighbours, and the cure; None if it does not."""
    least, below = TAKES_MMCV.get(own, ("0", "0"))
    mmcv = next((versions[one] for one in owners("mmcv", versions)), None)
    if own in TAKES_MMCV and mmcv and not number(least) <= number(mmcv) < number(below):
        return f"refuses mmcv {mmcv}; it takes {least} to below {below}", MMCV
    lacking = [one for one in UNDECLARED if one not in versions]
    if own.endswith("mmsegmentation") and lacking:
        return f"needs {' and '.join(lacking)}", f"pip install {' '.join(lacking)}"
    return None


def again(own: str, error: str) -> str:
    """Name the command that may cure a package that can't be imported."""
    lacking = re.search(r"No module named '(\w+)", error)
    if lacking and lacking[1] == "pkg_resources":
        return "pip install 'setuptools<82'"
    if lacking and lacking[1] not in OWNERS:
        return f"pip install {lacking[1]}"
    return f"pip install --force-reinstall --no-deps {own}"


def ops(seen: Mapping[str, Any]) -> Finding:
    """Look at mmcv's ops: compiled, stood in for, or missing."""
    found = seen["ops"]
    if found["compiled"]:
        return Finding("mmcv's ops", f"{len(found['compiled'])} compiled", OK, "", found)
    names = ", ".join(dict.fromkeys(short(name) for name in found["stood_in"]))
    text = f"not compiled; torchvision stands in for {names}; {len(found['missing'])} are missing"
    return Finding("mmcv's ops", text, OK, "", found)


def short(op: str) -> str:
    """Cut an op's name to what it does: nms, roi_align, deform_conv."""
    return re.sub(r"_(forward|backward)(_\w+)?$", "", op)


def data_roots() -> Iterator[Finding]:
    """Look for the data that the recipes read; where there is none is no fault."""
    pattern = re.compile(r"\{\{\$(\w+):([^}]*)\}\}")
    roots: dict[str, str] = defaultdict(str)
    for path in sorted(CONFIGS.glob("*.py")):
        roots.update(pattern.findall(path.read_text(encoding="utf-8")))
    for variable, default in sorted(roots.items()):
        if variable == "SHAPES_ROOT":  # the demo's, which makes them
            continue
        folder = os.environ.get(variable) or default
        there = os.path.isdir(folder)
        text = folder if there else f"{folder} not found"
        cure = "" if there else f"export {variable}=FOLDER"
        more = dict(folder=folder, found=there)
        yield Finding(f"${variable}", text, OK if there else NOTE, cure, more)


def weight_files(seen: Mapping[str, Any]) -> Iterator[Finding]:
    """Look for the published weights in the cache; what is not there is fetched when needed."""
    if "weights" not in seen:
        return
    there = [name for name, found in seen["weights"].items() if found["found"]]
    rest = [name for name in seen["weights"] if name not in there]
    parts = [f"in the cache: {', '.join(there)}"] if there else []
    parts += [f"fetched when needed: {', '.join(rest)}"] if rest else []
    yield Finding("weights", "; ".join(parts), OK, "", seen["weights"])
