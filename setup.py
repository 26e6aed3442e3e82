"""Metadata of the distribution. Settings of the development tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read(name: str) -> str:
    """Return the text of a file next to this one, or nothing where the file is missing."""
    path = HERE / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def version() -> str:
    """Read the version without importing the package, which would import torch."""
    found = re.search(r"^__version__ = ['\"](.+)['\"]$", read("hire_mlp_mm/__init__.py"), re.M)
    if not found:
        raise RuntimeError("hire_mlp_mm/__init__.py has no __version__")
    return found.group(1)


# The extras `openmmlab`, `lite` and `onedl` are alternatives: take one. Each is a whole stack, so
# that none has to be combined with another. That matters, because mmcv, mmcv-lite and onedl-mmcv
# all own the folder `mmcv/`, and pip installs one over the other without a word. For the same
# reason the package alone requires torch and nothing else: an environment that works stays as it
# is. mmdet, mmsegmentation and mmpretrain don't require mmcv themselves, so `lite` never gets it.
UPSTREAM = [
    "mmengine>=0.10.7,<1",
    "mmdet>=3.3.0,<4",
    "mmsegmentation>=1.2.2,<2",
    "mmpretrain>=1.2.0,<2",
    "ftfy",  # mmsegmentation needs this one and the next, and does not declare them
    "regex",
    "setuptools<82",  # mmengine imports pkg_resources, which setuptools 82 removed
    "numpy<2",  # these releases are older than numpy 2; this also keeps to OpenCV 4.11
]
EXTRAS = {
    # with mmcv's compiled ops: mostly built from source, which takes a compiler and a while, and
    # --no-build-isolation next to torch and setuptools < 82 (its build imports pkg_resources, too)
    "openmmlab": [*UPSTREAM, "mmcv>=2.1.0,<2.2.0"],
    # pure Python: torchvision's kernels stand in for the compiled ops (hire_mlp_mm.mmcv_ops)
    "lite": [*UPSTREAM, "mmcv-lite>=2.1.0,<2.2.0", "torchvision"],
    # the maintained continuation, under the same import names; its mmcv comes as source only, and
    # pip builds it apart from torch, so without ops: torchvision's stand in here, too
    "onedl": [
        "onedl-mmengine>=0.10.12",
        "onedl-mmcv>=2.3.6",
        "onedl-mmdetection>=3.5.1",
        "onedl-mmsegmentation>=1.4.2",
        "onedl-mmpretrain>=1.3.6",
        "torchvision",
    ],
    # what reads weight files of that kind, with torch alone or beside a stack
    "safetensors": ["safetensors"],
    # none of the stacks: what `hire-mlp export` needs besides one of them
    "onnx": ["onnx", "onnxruntime", "onnxscript"],
    # the other engine that runs the files
    "openvino": ["openvino"],
    # what the heat maps of `hire-mlp explain` need besides a stack
    "explain": ["torchcam>=0.5; python_version >= '3.11'"],
}

setup(
    name="hire_mlp_mm",
    version=version(),
    description="Hire-MLP, a vision MLP backbone, for MMDetection, MMSegmentation and MMPretrain",
    long_description=read("README.md"),
    long_description_content_type="text/markdown",
    author="The hire_mlp_mm authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords="computer vision, backbone, vision MLP, object detection, semantic segmentation",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["hire_mlp_mm", "hire_mlp_mm.*"]),
    entry_points={"console_scripts": ["hire-mlp=hire_mlp_mm.cli:main"]},
    # .mim holds links to configs, tools and model-index.yml, where OpenMMLab's mim looks for them
    package_data={
        "hire_mlp_mm": [
            "py.typed",
            "deploy/matrix.json",
            ".mim/model-index.yml",
            ".mim/configs/*.py",  # those of configs/study are for maintainers
            ".mim/configs/_base_/*.py",
            ".mim/configs/*.yml",
            ".mim/tools/*.py",
            ".mim/tools/*.sh",
        ]
    },
    python_requires=">=3.10",
    install_requires=["torch"],  # no floor: it could replace a torch that mmcv was compiled for
    extras_require=EXTRAS,
    zip_safe=False,
)
