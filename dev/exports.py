"""Export a model of each kind that the hosts ship, and compare the files with the hosts.

    python dev/exports.py PHOTOGRAPHS

For each config that works in docs/compatibility.md: its form, or why it has none. Configs whose
parts besides the backbone are of the same classes are one kind, and of each kind one model is
exported, with one block in each stage and random weights, to each sort of file; what the files give
for the photographs is compared with what the host predicts. An int8 file is made and run, but not
compared: random weights agree with nothing. The results go into
hire_mlp_mm/deploy/matrix.json, which `hire-mlp export` asks, and into the page. Each try runs in a
process of its own. The results so far are kept in work_dirs, and not computed twice.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import torch
from chaos import preloaded
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from sweep import PACKAGES, WORKS, without_weights

from hire_mlp_mm import HireMLPNet, arch
from hire_mlp_mm.configure import swap_backbone
from hire_mlp_mm.configure.swap import find_network
from hire_mlp_mm.deploy import exporting, formats, int8, matrix, tracing
from hire_mlp_mm.deploy.check import images_of, predict_by_host
from hire_mlp_mm.deploy.forms import NoFormError, form_of
from hire_mlp_mm.deploy.runtime import Runtime
from hire_mlp_mm.engine.config import read_config
from hire_mlp_mm.errors import UserError, describe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
TABLE = ROOT / "hire_mlp_mm" / "deploy" / "matrix.json"
LOG = Path("work_dirs") / "exports.jsonl"
SHALLOW = arch.Arch(depths=(1, 1, 1, 1), dims=arch.ARCHS["tiny"].dims)
SECONDS = 1500  # for one try
PASS = 30  # boxes of a photograph, at least
SUFFIXES = (".pt2", ".onnx")
SORTS = (*SUFFIXES, matrix.INT8)
KIND, FAILS, NOT_TRIED = "kind ", "fails: ", "not tried: "
COLUMNS = ("ONNX", "torch.export", "int8", "backbone as ONNX")
ROW = re.compile(r"\| (\S+) \| `(\S+)` \| ([^|]*) \|")
Known = dict[str, Any]  # of configs: their kind, or the reason; of kinds: the result for each file


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", help="a folder; of few, for every kind is tried on each")
    parser.add_argument("--configs", nargs="+", metavar="NAME", help="these only; no page")
    parser.add_argument("--forms", action="store_true", help="look for forms alone")
    parser.add_argument("--page", action="store_true", help="write what is known so far alone")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    LOG.parent.mkdir(exist_ok=True)
    LOG.touch()
    known: Known = dict(json.loads(line) for line in LOG.read_text().splitlines())
    names = args.configs or configs(PAGE.read_text())
    learn(known, {name: (look, (name,)) for name in names}, args.processes)
    if args.forms:
        return
    if args.page:
        write(names, known)
        return
    kinds = {known[name]: name for name in reversed(names) if known[name].startswith(KIND)}
    jobs = {f"files: {kind}": (try_kind, (name, args.photographs)) for kind, name in kinds.items()}
    learn(known, {**jobs, f"files: {KIND}": (try_backbone, ())}, args.processes)
    if not args.configs:
        write(names, known)


def write(names: list[str], known: Known) -> None:
    """Write the table and the page; of a kind that has not been tried, the table says nothing."""
    kinds = sorted({known[name] for name in names if f"files: {known[name]}" in known})
    table = {kind.removeprefix(KIND): files_of(known, kind) for kind in kinds}
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    PAGE.write_text(with_columns(PAGE.read_text(), known))


def files_of(known: Known, found: str) -> dict[str, str]:
    """Return what is known of each sort of file, by a config's kind or the reason it has none."""
    not_tried = found.startswith(FAILS)  # the swap, for want of a package, for example
    why = f"not tried: {found.removeprefix(FAILS)}" if not_tried else f"refused: {found}"
    files = known.get(f"files: {found}", matrix.AVAILABLE if found.startswith(KIND) else why)
    return dict.fromkeys(SORTS, files) if isinstance(files, str) else files


def learn(known: Known, jobs: dict[str, Any], processes: int) -> None:
    """Do the jobs whose results are not known yet, and keep these."""
    missing = [(key, *job) for key, job in jobs.items() if key not in known]
    with LOG.open("a") as log, ThreadPool(processes) as pool:
        for i, (key, result) in enumerate(pool.imap_unordered(try_apart, missing), 1):
            known[key] = result
            print(json.dumps([key, result]), file=log, flush=True)
            print(f"[{i}/{len(missing)}] {key}: {result}", flush=True)


# A try -------------------------------------------------------------------------------------------


def try_apart(job: tuple[str, Callable[..., Any], Any]) -> tuple[str, Any]:
    """Call a function in a process of its own; return the key, and the result or how it ended."""
    key, function, arguments = job
    context = preloaded()
    receiver, sender = context.Pipe(duplex=False)
    context.Process(target=call, args=(function, arguments, sender)).start()
    sender.close()  # the process has the other end; when it dies, ours says so
    try:
        return key, receiver.recv()
    except EOFError:
        return key, f"{FAILS}the process was killed (memory, or more than {SECONDS} s?)"


def call(function: Callable[..., Any], arguments: Any, sender: Any) -> None:
    """Send what a function returns."""
    signal.alarm(SECONDS)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    MMLogger.get_current_instance().setLevel("ERROR")  # the hosts say much about themselves
    arch.ARCHS["tiny"] = SHALLOW
    matrix.table = dict  # nothing is known before it is tried
    try:
        sender.send(function(*arguments))
    except Exception as error:  # a sweep goes on
        sender.send(f"{FAILS}{describe(error)}"[:300])


def look(name: str) -> str:
    """Return the kind of a config's model with HireMLP in, or why it has no form."""
    cfg = read_config(name)
    model = without_weights(find_network(cfg.model)[0])
    model.backbone = dict(type="HireMLP", arch=SHALLOW)
    try:
        form_of(build(cfg.default_scope, model, "meta"))
    except NoFormError as error:
        return str(error)
    except Exception:  # to be seen with the right channels
        pass
    try:
        return KIND + matrix.kind_of(form_of(swapped(name)).model)
    except NoFormError as error:
        return str(error)


def build(scope: str, model: Any, device: str = "cpu") -> Any:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope), torch.device(device):
        return MODELS.build(model).eval().requires_grad_(False)


def swapped(name: str) -> Any:
    """Return the model of a config, with HireMLP in, and weights that matter.

    Of detectors that leave padding to their pipelines (RTMDet, SSD), the preprocessor pads.
    """
    cfg = swap_backbone(read_config(name), "tiny", "none")
    preprocessor = cfg.model.get("data_preprocessor") or {}
    if cfg.default_scope == "mmdet" and "pad_size_divisor" not in preprocessor:
        cfg.merge_from_dict({"model.data_preprocessor.pad_size_divisor": 32})
    model = build(cfg.default_scope, without_weights(cfg.model))
    exporting.randomize(model)
    model.cfg = cfg
    return model


def try_kind(name: str, photographs: str) -> dict[str, str]:
    """Export the model of a config to each sort of file, and compare what these give."""
    model, folder, results = swapped(name), Path(photographs), {}
    is_detector = form_of(model).task == "detection"
    if is_detector:
        let_boxes_pass(model, folder)
    # One trace for both files saves half of the time; with the inference form it is shorter.
    trace = mock.patch.object(tracing, "trace", cache_one(tracing.trace))
    with tempfile.TemporaryDirectory() as place, torch.no_grad(), trace:
        for suffix in SUFFIXES:
            out, photos = Path(place, f"a{suffix}"), folder if is_detector else None
            try:
                exporting.export(model, out, photographs=photos, fused=True)
                if not is_detector:
                    compare(formats.open_file(out), model, folder)
                results[suffix] = matrix.VALIDATED
            except Exception as error:
                results[suffix] = f"{FAILS}{describe(error)}".replace(f"{folder}/", "")[:300]
        wrote = results[".onnx"] == matrix.VALIDATED
        results[matrix.INT8] = try_int8(out, folder) if wrote else results[".onnx"]
    return results


def let_boxes_pass(model: Any, folder: Path) -> None:
    """Lower a detector's threshold, which scores of random weights may not reach."""
    head = getattr(model, "roi_head", None) or model.bbox_head
    given = head.test_cfg.score_thr
    head.test_cfg.score_thr = 0.0
    scores = [predict_by_host(model, image)[0].scores for _, image in images_of(folder)]
    boxes = min(PASS, *map(len, scores))
    head.test_cfg.score_thr = min(given, *(float(one[boxes - 1]) for one in scores))


def try_int8(exported: Path, photographs: Path) -> str:
    """Quantise a file, and run that on a photograph; say what came of it."""
    images, rough = int8.photographs_for(exported, photographs)[:1], exported.with_name("8.onnx")
    try:
        int8.quantise(Runtime(exported), rough, images)
        int8.outcome(Runtime(rough), images[0])
    except UserError as error:
        return f"{NOT_TRIED}{error}".replace(f"{exported}: ", "")
    except Exception as error:
        return f"{FAILS}{describe(error)}"[:300]
    return matrix.AVAILABLE


def cache_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function return its first result every time."""
    results: list[Any] = []

    def cached(*arguments: Any) -> Any:
        results.extend([] if results else [function(*arguments)])
        return results[0]

    return cached


def try_backbone() -> dict[str, str]:
    """Export a backbone, which is the same in every model."""
    model = HireMLPNet(SHALLOW).eval()
    exporting.randomize(model)
    with tempfile.TemporaryDirectory() as place:
        exporting.export(model, Path(place, "a.onnx"))
    return {".onnx": matrix.VALIDATED}


def compare(run: formats.Runner, model: Any, folder: Path) -> None:
    """Compare a file of a segmentor or classifier with the host's predictions for photographs."""
    if (getattr(model, "test_cfg", None) or {}).get("mode") == "slide":
        model.test_cfg.mode = "whole"  # as the file takes images
    for path, image in images_of(folder):
        loaded = torch.from_numpy(cv2.resize(image, (224, 224))).permute(2, 0, 1)
        given = model.data_preprocessor(dict(inputs=[loaded]))["inputs"]
        found, sample = run(given)[0][0], model.predict(given)[0]
        seg = hasattr(sample, "seg_logits")
        found = found.sigmoid() if seg and len(found) == 1 else found
        wanted = sample.seg_logits.data if seg else sample.pred_score
        difference = formats.difference(found, wanted)
        assert difference <= 1e-4, f"differs by {difference:.1e} on {path}"


# The page ----------------------------------------------------------------------------------------


def configs(page: str) -> list[str]:
    """Return the names of the configs that work on the page."""
    return [name for _, name, works in rows(page) if works]


def rows(page: str) -> Iterator[tuple[int, str, bool]]:
    """Yield the number of each line with a config, the config, and whether it works."""
    package = None
    for i, line in enumerate(page.splitlines()):
        if line.startswith("## "):
            package = line.removeprefix("## ")
        elif package and (row := ROW.match(line)):
            name = next(key for key, title in PACKAGES.items() if title == package)
            yield i, f"{name}::{row[1]}/{row[2]}", row[3].startswith(WORKS)


def with_columns(page: str, known: Known) -> str:
    """Write the results into the page, in the place of what is there."""
    lines = page.splitlines()
    for i, name, works in rows(page):
        cells = cells_of(known, name) if works else [""] * len(COLUMNS)
        first = " | ".join(lines[i].split(" | ")[:3]).removesuffix(" |")
        lines[i] = f"{first} | {' | '.join(cells)} |"
    for i, line in enumerate(lines):
        if line.startswith("| family | config"):
            lines[i] = f"| family | config | result | {' | '.join(COLUMNS)} |"
            lines[i + 1] = "|---" * (3 + len(COLUMNS)) + "|"
    return "\n".join(lines) + "\n"


def in_a_cell(text: str) -> str:
    """Write a text so that a table's cell holds it, and nothing in it is a link."""
    return " ".join(text.replace("|", "/").replace("](", "] (").split())


def cells_of(known: Known, name: str) -> list[str]:
    """Return what stands in the columns of a config."""
    files = files_of(known, known[name])
    whole = [in_a_cell(files[sort]) for sort in (".onnx", ".pt2", "int8")]
    others = [one.partition(":")[0] if one == whole[0] else one for one in whole[1:]]
    return [whole[0], *others, files_of(known, KIND)[".onnx"]]  # the same reason once


if __name__ == "__main__":
    main()
