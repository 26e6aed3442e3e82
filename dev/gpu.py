#!/usr/bin/env python
"""Run on a GPU what only a GPU can show.

    python dev/gpu.py test [--rehearse] [--wheels] [ARGUMENTS OF PYTEST]
    python dev/gpu.py bench [--rehearse] [--wheels] [--minutes 9]
    python dev/gpu.py wheels --python 3.12 [--has NAME ...]

`test` and `bench` take at most nine minutes each. Without a GPU they are skipped; `--rehearse` runs
on the CPU, with small networks, what can be run there. Where no package index is at hand, torch and
torchvision are enough with `--wheels`, which takes all else from the folder wheels/. It is filled
elsewhere, by `wheels`, from the project's lock; `--has` names what the machine has besides torch.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / "wheels"
SITE = WHEELS / "site"
MINUTES = 9

# Tests elsewhere that ask the same of a GPU where there is one; they need OpenMMLab.
SECOND_FLOOR = [
    "tests/second_floor/test_resume.py::test_a_gradient_scaler_goes_on",
    "tests/second_floor/test_resume.py::test_mixed_precision_goes_on_bit_for_bit",
    "tests/second_floor/test_distributed.py"
    "::test_two_processes_give_the_gradients_of_the_doubled_batch",
]


def half(*names: str) -> str:
    return " ".join(f"{name}:float16" for name in names)


FORMS = f"--forms {half('plain', 'plain+compile', 'fused', 'fused+compile')}"
REFERENCE = f"--against {half('reference')}"
OTHERS = ("swin-t", "convnext-t", "resnet-50")
COMPILED = tuple(f"{name}+compile" for name in OTHERS)
PEERS = f"{REFERENCE} reference {half(*OTHERS, *COMPILED)}"
GRAPHS = half("fused+graph", "fused+compile+graph")
IMAGENET, COCO = "--size 224x224 --batch 64", "--size 800x1344 --batch"
STEP = f"--train --forms plain {half('plain', 'plain+compile', 'plain+cp')} {REFERENCE}"
STEP += f" reference {half('swin-t')}"
SIZES = ("tiny", "base", "large")
# What is asked first comes first; a network's graphs, once compiled, serve the later ones.
BENCHES = [
    f"{COCO} 1 {FORMS} {GRAPHS} {PEERS}",
    f"{COCO} 8 {FORMS} {half('fused+channels_last')} {PEERS}",
    f"{IMAGENET} {FORMS} {PEERS}",
    f"{IMAGENET} {STEP} --profile",
    f"{COCO} 2 {STEP}",
    f"{COCO} 8 --forms {half('plain', 'fused')} {REFERENCE} --profile",
    *(f"--arch {arch} {IMAGENET} {FORMS} {REFERENCE}" for arch in SIZES),
    *(f"--arch {arch} {COCO} 1 {FORMS} {REFERENCE}" for arch in SIZES),
]
# The last of two options counts.
REHEARSED = "--device cpu --arch tiny --size 64x96 --batch 2 --runs 1"

# Besides what requirements/openmmlab.in asks for.
TEST_WITH = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis"]
# Of glibc's versions that wheels are made for, by number and by their old names.
PLATFORMS = [f"manylinux_2_{minor}" for minor in (28, 27, 24, 17, 12, 5)]
PLATFORMS += ["manylinux2014", "manylinux2010", "manylinux1"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name in ("test", "bench"):
        verb = verbs.add_parser(name)
        verb.add_argument("--rehearse", action="store_true", help="on the CPU")
        verb.add_argument("--wheels", action="store_true", help="install what wheels/ holds")
        verb.add_argument("--minutes", type=float, default=MINUTES, help="that it may take")
    verb = verbs.add_parser("wheels")
    verb.add_argument("--python", required=True, help="of the machine with the GPU, such as 3.12")
    verb.add_argument("--has", nargs="*", default=[], metavar="NAME", help="what need not travel")
    args, rest = parser.parse_known_args()
    if rest and args.verb != "test":
        parser.error(f"unknown: {shlex.join(rest)}")
    os.chdir(ROOT)
    if args.verb == "wheels":
        return gather(args.python, ["torch", "torchvision", *args.has])
    if args.wheels:
        install()
    if not args.rehearse and not has_gpu():
        print(f"gpu.py {args.verb}: skipped: no GPU here; --rehearse tries on the CPU what it can")
        return None
    end = time.monotonic() + 60 * args.minutes
    sys.exit(test(args.rehearse, rest, end) if args.verb == "test" else bench(args.rehearse, end))


def has_gpu() -> bool:
    if not find_spec("torch"):
        sys.exit(f"gpu.py: {sys.executable} has no torch; run it by a Python that has")
    import torch

    return torch.cuda.is_available()


def run(command: list[str], end: float) -> int:
    """Run a command until the end of the time at most; return its exit code."""
    try:
        left = max(1, end - time.monotonic())
        return subprocess.run(command, timeout=left, check=False).returncode
    except subprocess.TimeoutExpired:
        print("gpu.py: out of time", flush=True)
        return 124


def do(*command: object) -> None:
    """Run a command; end with a line if it fails."""
    if code := subprocess.run([*map(str, command)], check=False).returncode:
        name = " ".join(map(str, command[1:4]))
        sys.exit(f"gpu.py: {name} failed ({code}), for the reason above")


def test(rehearse: bool, rest: list[str], end: float) -> int:
    device = "cpu" if rehearse else "cuda"
    tests = ["tests/gpu", *(SECOND_FLOOR if find_spec("mmdet") else [])]
    if len(tests) == 1:
        print("gpu.py test: without OpenMMLab, so without resume and two processes")
    command = [sys.executable, "-m", "pytest", "--numprocesses", "0", "--durations", "5"]
    return run([*command, "--device", device, *tests, *rest], end)


def bench(rehearse: bool, end: float) -> int:
    codes = []
    for number, options in enumerate(BENCHES):
        words = ["bench", "--device", "cuda", "--runs", "30", *options.split()]
        if rehearse:
            words = [word for word in words if "+graph" not in word] + REHEARSED.split()
        if time.monotonic() > end:
            print(f"gpu.py bench: out of time; {len(BENCHES) - number} tables were not made")
            return 124
        start = time.monotonic()
        code = measure(words, end)
        fewer = [word for word in words if not word.startswith(COMPILED)]
        if code == 2 and fewer != words:  # perhaps torch cannot compile somebody else's network
            code = measure(fewer, end)
        codes.append(code)
        print(f"\n({time.monotonic() - start:.0f} s)", flush=True)
    return next((code for code in codes if code), 0)


def measure(words: list[str], end: float) -> int:
    print(f"\n    hire-mlp {shlex.join(words)}\n", flush=True)
    return run([sys.executable, "-m", "hire_mlp_mm", *words], end)


def install() -> None:
    """Unpack the wheels, and have this process and those that it starts find them first."""
    if not SITE.exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        wheels = [str(path) for path in sorted(WHEELS.glob("*.whl"))]
        if not wheels:
            sys.exit("gpu.py: wheels/ holds no wheels; `python dev/gpu.py wheels` gathers them")
        do(*command, "--target", SITE, *wheels)
    sys.path.insert(0, str(SITE))
    os.environ["PYTHONPATH"] = f"{SITE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"


def gather(python: str, has: list[str]) -> None:
    """Download the wheels that the lock pins, for Linux on x86-64; say how large they are."""
    if WHEELS.exists() and any(WHEELS.iterdir()):
        sys.exit("gpu.py: wheels/ is not empty; remove it first")
    tools = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        asked, left_out, listed = (Path(folder, name) for name in ("in.in", "out.txt", "list.txt"))
        asked.write_text("\n".join(TEST_WITH))
        never = "".join(f"{name} ; python_version < '3'\n" for name in has)
        left_out.write_text(never + Path("requirements/overrides.txt").read_text())
        choose = [tools / "uv", "pip", "compile", "--quiet", "--no-annotate", "--no-emit-index-url"]
        choose += ["--only-binary", ":all:", "--constraint", "requirements/lock.txt"]
        choose += ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28"]
        choose += ["--override", left_out, "--output-file", listed, "requirements/openmmlab.in"]
        do(*choose, asked)
        fetch = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps"]
        fetch += ["--only-binary", ":all:", "--python-version", python, "--implementation", "cp"]
        fetch += [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
        do(*fetch, "-r", listed, "-d", WHEELS)
    found = sorted(WHEELS.glob("*.whl"), key=lambda path: -path.stat().st_size)
    for path in found[:5]:
        print(f"{path.stat().st_size / 2**20:6.1f} MiB {path.name}")
    total = sum(path.stat().st_size for path in found) / 2**20
    print(f"gpu.py: {len(found)} wheels in wheels/, {total:.1f} MiB")


if __name__ == "__main__":
    main()
