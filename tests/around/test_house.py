"""Does the house keep its order? (floors, the hosts' private names, silent import, no addresses)"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "hire_mlp_mm"
# A file may import from its own floor and from those below it. A folder is on one floor.
FLOORS = (
    {"errors", "allowed", "numbers_only", "safetensors_file", "torch_file", "weights", "checkpoint",
     "disk", "convert", "names", "arch", "hire_mlp", "ops", "lean", "fuse", "compiling",
     "memory"},
    {"registry", "backbone", "layer_decay", "mmcv_ops", "deform_ops", "roi_align", "fsdp", "files",
     "loading", "host_faults", "model_hub"},
    {"data", "engine", "configure", "deploy", "prediction", "explain", "bench", "doctor", "probe"},
    {"cli", "__main__"},
)  # fmt: skip
HOSTS = {"mmdet", "mmseg", "mmpretrain"}
# What the lower floors may import of others; where a file is named, it alone.
THIRD_PARTY = (
    {"torch": None, "numpy": {"allowed", "numbers_only"}, "safetensors": {"safetensors_file"}},
    {"torch": None, "mmengine": None, "mmcv": None, "torchvision": None},
)
FILES = sorted(path for path in PACKAGE.rglob("*.py") if ".mim" not in path.parts)

# Private names that have no public one. Torch's, besides what is in its compiled part (torch._C)
# and its operators (torch.ops):
TORCH_PRIVATE = {
    "_BatchNorm": "the class of all BatchNorms, SyncBatchNorm included",
    "_C": "torch's compiled part",
    "_config": "settings of symbolic shapes",
    "_current_level": "whether forward-mode derivatives are being taken",
    "_dynamo": "settings of the compiler, which torch documents under this name",
    "_guards_code": "what an exported program asks of its inputs, besides their least sizes",
    "_is_view": "whether memory is another tensor's",
    "_metadata": "the versions of modules, in a state dict",
    "_subclasses": "tensors without numbers, to count what a network does",
}
# The standard library's.
STANDARD_PRIVATE = {
    "_exit": "of os, described in its documentation",
    "_option_string_actions": "the options that an argparse parser knows",
}


def part_of(path: Path) -> str:
    """The file or folder right under the package that a file is or is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(part: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if part in floor)


def parts_imported(path: Path, node: ast.AST) -> Iterator[str]:
    """Files and folders right under the package that an import statement names."""
    inside = ("hire_mlp_mm", *path.relative_to(PACKAGE).parts[:-1])
    if isinstance(node, ast.Import):
        modules = [alias.name.split(".") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = list(inside[: len(inside) - node.level + 1]) if node.level else []
        base += (node.module or "").split(".") if node.module else []
        modules = [[*base, alias.name] for alias in node.names]
    else:
        return
    for module in modules:
        if module[0] == "hire_mlp_mm" and module[1:] not in ([], ["__version__"]):
            yield module[1]


def others_imported(node: ast.AST) -> Iterator[str]:
    """Third-party packages that an import statement names."""
    names: list[str] = []
    if isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module]
    elif isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    for name in {name.partition(".")[0] for name in names}:
        if name not in sys.stdlib_module_names and name != "hire_mlp_mm":
            yield name


def nodes(path: Path) -> list[ast.AST]:
    """All of a file, functions included."""
    return list(ast.walk(ast.parse(path.read_text())))


def every_file(but: str = ""):
    """Ask a question of every file of the package, but for one."""
    files = [path for path in FILES if path.relative_to(ROOT).as_posix() != but]
    ids = [path.relative_to(ROOT).as_posix() for path in files]
    return pytest.mark.parametrize("path", files, ids=ids)


def test_every_file_has_a_floor():
    assert {part_of(path) for path in FILES} - {"__init__"} <= set.union(*FLOORS)


@every_file(but="hire_mlp_mm/__init__.py")  # which offers what there is
def test_imports_run_one_way(path):
    floor = floor_of(part_of(path))
    imported = [part for node in nodes(path) for part in parts_imported(path, node)]
    above = {part for part in imported if floor_of(part) > floor}
    assert not above, f"{path.name} is below {above}"


@every_file()
def test_the_lower_floors_import_nothing_else(path):
    """Torch alone on the ground floor; of OpenMMLab, mmengine and mmcv on the first."""
    imported = {other for node in nodes(path) for other in others_imported(node)}
    if part_of(path) == "__init__":
        assert not imported
    elif floor_of(part_of(path)) < len(THIRD_PARTY):
        rules = THIRD_PARTY[floor_of(part_of(path))]
        for other in imported:
            assert other in rules, f"{path.name} imports {other}"
            assert rules[other] is None or path.stem in rules[other], f"{path.name}: {other}"


# Private names of the hosts ----------------------------------------------------------------------


# setattr(x, "_name", ...), vars(x).get("_name"), x.__dict__["_name"] and the like
BY_NAME = re.compile(r"(get|set|has|del)attr\(|vars\(.*\)[.\[]|.*\.__dict__[.\[]", re.S)


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.startswith("__")


def private_names_used(tree: list[ast.AST]) -> Iterator[tuple[int, str]]:
    """(line, name) of private names that are taken from something or imported."""
    for node in tree:
        names: list[object] = []
        if isinstance(node, ast.Attribute):
            if not ast.unparse(node.value).startswith(("torch._C", "torch.ops.")):
                names = [node.attr]
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [name for alias in node.names for name in alias.name.split(".")]
        elif isinstance(node, ast.Call) and BY_NAME.match(ast.unparse(node)):
            names = [getattr(arg, "value", None) for arg in node.args]
        elif isinstance(node, ast.Subscript) and BY_NAME.match(ast.unparse(node)):
            names = [getattr(node.slice, "value", None)]
        yield from ((node.lineno, name) for name in names if is_private(name) and name != "_")


def names_made(tree: list[ast.AST]) -> set[str]:
    """Functions, classes and variables of modules and classes that a file defines."""
    found = set()
    for node in tree:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        body = node.body if isinstance(node, ast.Module | ast.ClassDef) else []
        for statement in body:
            if isinstance(statement, ast.Assign | ast.AnnAssign):
                found |= {n.id for n in ast.walk(statement) if isinstance(n, ast.Name)}
    return found


def overridden(module) -> Iterator[str]:
    """Private methods of somebody else's classes that classes of a module put others in place of.

    Where one is derived from a class of host_faults.py, that has done so.
    """
    for cls in vars(module).values():
        if isinstance(cls, type) and cls.__module__ == module.__name__:
            others = [b for b in cls.__mro__ if not b.__module__.startswith("hire_mlp_mm")]
            for name in filter(is_private, vars(cls)):
                if any(name in vars(base) for base in others if base is not object):
                    yield f"{cls.__name__}.{name}"


PATCHES = "hire_mlp_mm/host_faults.py"


@every_file(but=PATCHES)
def test_private_names_of_the_hosts_stand_in_one_file(path):
    tree = nodes(path)
    fine = names_made(tree) | TORCH_PRIVATE.keys() | STANDARD_PRIVATE.keys()
    used = [f"line {line}: {name}" for line, name in private_names_used(tree) if name not in fine]
    assert not used


@every_file(but=PATCHES)
def test_private_methods_of_the_hosts_are_overridden_in_one_file(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(p for p in parts if p != "__init__"))
    made = {"_abc_impl", "_backward_cls"}  # by Python and torch, in every class of some kinds
    assert not [name for name in overridden(module) if name.partition(".")[2] not in made]


def test_the_search_finds_what_it_is_for():
    tree = list(
        ast.walk(
            ast.parse(
                "from host._part import _thing\n"
                "runner._resume = True\n"
                "setattr(hub, '_get', None)\n"
                "def _ours(x):\n    return x._param\n"
                "mine._ours()\n"
                "vars(state).get('_metadata')\n"
                "state.__dict__['_versions'] = 0\n"
            )
        )
    )
    assert sorted(private_names_used(tree)) == [
        (1, "_part"), (1, "_thing"), (2, "_resume"), (3, "_get"), (5, "_param"), (6, "_ours"),
        (7, "_metadata"), (8, "_versions"),
    ]  # fmt: skip
    assert "_ours" in names_made(tree)
    assert "_resume" not in names_made(tree)


def test_no_private_name_is_listed_for_nothing():
    used = {name for path in FILES for _, name in private_names_used(nodes(path))}
    assert TORCH_PRIVATE.keys() | STANDARD_PRIVATE.keys() <= used


# The package as a whole --------------------------------------------------------------------------


def test_importing_the_package_is_silent_and_light():
    code = (
        "import sys, hire_mlp_mm\n"
        "heavy = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'torchvision', 'safetensors',\n"
        "    'hire_mlp_mm.engine', 'hire_mlp_mm.cli'} & set(sys.modules)\n"
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
        if not path.exists():  # removed, and not committed yet
            continue
        if path.suffix in (".py", ".txt", ".in", ".md", ".toml", ".yml", ".yaml", ".sh", ".cff"):
            text = path.read_text()
            for word in ("--index" + "-url", "--find" + "-links", "/work" + "/main"):
                assert word not in text, (name, word)
