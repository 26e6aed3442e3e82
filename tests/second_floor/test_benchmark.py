"""Does the bench measure what it says?"""

from __future__ import annotations

import json
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from hire_mlp_mm.bench import PEERS, Candidate, Settings, candidates, runs
from hire_mlp_mm.bench.meters import KINDS, kept_bytes, profiled


def test_kept_bytes_are_the_activations_that_backward_needs():
    """ReLU keeps its output, which is the second layer's input; the image is not counted."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert kept_bytes(model, torch.rand(5, 4)) == 5 * 8 * 4


@pytest.mark.slow
def test_inference_beside_others(run_tool, tmp_path):
    out = tmp_path / "figures.json"
    done = run_tool(
        "tools/benchmark.py", "--arch", "tiny", "--size", "64x96", "--runs", "2", "--json", out,
        "--forms", "plain", "fused", "fused:bfloat16", "--against", "reference", "swin-t",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["setting"]["size"] == "64x96"
    by_name = {(c["name"], c["dtype"]): c for c in figures["candidates"]}
    plain, reference = by_name["Hire-Tiny plain", "float32"], by_name["reference", "float32"]
    assert plain["params"] == reference["params"]
    assert plain["macs"] == reference["macs"]
    assert by_name["Hire-Tiny fused", "float32"]["macs"] == plain["macs"]  # of the one it is from
    assert all(len(c["times"]) == 2 and c["limit"] > 0 for c in figures["candidates"])
    assert len(done.stdout.splitlines()) == 4 + len(figures["candidates"])
    assert "| reference | float32 | " in done.stdout


@pytest.mark.parametrize("name", PEERS)
def test_peers_give_the_same_pyramid(name):
    peer = Candidate(name, Settings(arch="tiny", size=(64, 96), batch=2, threads=1))
    assert peer.figures.macs > 5e8
    with torch.inference_mode():
        assert [x.shape[2:] for x in peer.model(peer.image)] == [
            (64 // s, 96 // s) for s in (4, 8, 16, 32)
        ]


def test_swin_runs_in_half_precision():
    """Its masks, made in every run, would be float32."""
    peer = Candidate("swin-t:bfloat16", Settings(size=(64, 96), threads=1))
    peer.step(peer.image)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.slow
def test_training_step(run_tool):
    done = run_tool(
        "tools/benchmark.py", "--train", "--arch", "tiny", "--size", "64x64", "--runs", "1",
        "--forms", "plain", "plain:bfloat16", "plain+cp", "--profile",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures, operations = done.stdout.split("\n\n")[1:]
    kept = [float(row.split("|")[-2].split()[0]) for row in figures.splitlines()[2:]]
    full, mixed, recomputed, reference = kept
    assert recomputed < full < reference
    assert full < mixed  # of so small an image: the weights in the other type
    assert len(operations.splitlines()) == 2 + len(KINDS)


@pytest.mark.parametrize(("name", "keeps"), [("plain", False), ("plain+keep", True)])
def test_memory_is_kept_where_it_is_asked_for(name, keeps, monkeypatch):
    keep = Mock()
    monkeypatch.setattr(candidates, "keep_memory", keep)
    Candidate(name, Settings(arch="tiny", size=(64, 64), threads=1)).measure()
    assert keep.called == keeps


def test_the_time_of_operations_is_that_of_their_kind():
    x, layer = torch.rand(1, 8, 64, 64, requires_grad=True), nn.Conv2d(8, 512, 3)
    kinds = profiled(lambda: layer(x).sum().backward(), x)
    known = sum(time for kind, time in kinds.items() if kind != "all else")
    assert kinds["gradients of convolutions"] > kinds["convolutions, matrix products"] > 0
    assert kinds["norms, their gradients"] == kinds["GELU, ReLU, their gradients"] == 0
    assert known > kinds["all else"]


@pytest.mark.parametrize("end", [EOFError, BrokenPipeError, ConnectionResetError])
def test_a_candidate_that_nobody_asks_ends_in_silence(end, monkeypatch):
    """A peer that closes with figures unread is a reset."""
    monkeypatch.setattr(runs, "build", Mock())
    connection = Mock(recv=Mock(side_effect=end))
    runs.serve(connection, "plain", Settings())
    assert connection.send.call_count == 1  # its figures


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--size", "12"], "--size 12: expected height x width"),
        (["--forms", "other"], "unknown 'other'; expected plain, fused, reference"),
        (["--forms", "plain+cp"], "plain+cp: +cp is for plain, with --train"),
        (["--train", "--forms", "plain+compile+cp"], "plain+compile+cp: +cp or +compile"),
        (["--train", "--forms", "fused"], "--train fused: expected a form that trains"),
        (["--device", "cpu", "--forms", "plain+graph"], "+graph is for inference on a GPU"),
        (["--device", "cuda", "--forms", "plain+keep"], "plain+keep: +keep is for a CPU"),
        (["--device", "fpga"], "--device fpga: expected cpu, cuda, or one such as cuda:1"),
        pytest.param(
            ["--device", "cuda"],
            "finds no GPU here; --device cpu measures the processor",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["retinanet_hire_nano_shapes", "--arch", "tiny"], "--cfg-options model.backbone.arch="),
        (["--cfg-options", "model.backbone.arch=tiny"], "--cfg-options without a config; name one"),
        (["--batch", "0"], "--batch 0: expected 1 or more"),
        (["--runs", "0"], "--runs 0: expected 1 or more"),
        (["--threads", "-1"], "--threads -1: expected 1 or more"),
        (["retinanet_hire_nano_shapes", "--against", "reference"], "expected plain, fused, swin-t"),
        (["retinanet_hire_nano_shapes", "--forms", "swin-t+compile"], "+compile is for HireMLP"),
        (["retinanet_hire_other", "--forms", "plain"], "plain: config retinanet_hire_other not f"),
    ],
)
def test_errors_are_one_line(fork_tool, args, said):
    done = fork_tool("tools/benchmark.py", *args)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
