"""Does the house keep its order? (one-way imports, silent import, metadata in one place)"""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "hire_mlp_mm"
OPENMMLAB = {"mmengine", "mmcv"}
# file: (modules of ours, third-party packages) that it may import
ALLOWED = {
    "__init__": ({"backbone", "config_names", "layer_decay"}, set()),
    "registry": (set(), {"mmengine"}),
    "backward": (set(), {"torch"}),
    "hire_mlp": ({"backward"}, {"torch"}),
    "fuse": ({"hire_mlp"}, {"torch"}),
    "torch_file": (set(), {"torch"}),
    "checkpoint": ({"torch_file"}, {"torch"}),
    "weights": (set(), set()),
    "backbone": ({"hire_mlp", "checkpoint", "weights", "registry"}, OPENMMLAB | {"torch"}),
    "layer_decay": ({"registry"}, {"mmengine", "torch"}),
    "config_names": (set(), {"mmengine"}),
    "fsdp": ({"hire_mlp"}, {"mmengine", "torch"}),
    "mmcv_ops": (set(), {"torch", "torchvision", "mmcv"}),
}


def imports(path) -> tuple[set[str], set[str]]:
    """(modules of ours, third-party packages) that a file imports, functions included."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            ours |= {node.module} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            others.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return ours, others - set(sys.stdlib_module_names)


def test_every_file_has_a_rule():
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("name", ALLOWED)
def test_imports_run_one_way(name):
    ours, others = imports(PACKAGE / f"{name}.py")
    assert ours <= ALLOWED[name][0]
    assert others <= ALLOWED[name][1]


def test_importing_the_package_is_silent_and_light():
    code = (
        "import sys, hire_mlp_mm\n"
        "heavy = {'mmdet', 'mmseg', 'mmpretrain', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-W", "ignore:pkg_resources", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_registry_or_machine_path_in_the_files():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".txt", ".in", ".md", ".toml", ".yml", ".yaml", ".sh", ".cff"):
            text = path.read_text()
            for word in ("--index" + "-url", "--find" + "-links", "/work" + "/main"):
                assert word not in text, (name, word)
