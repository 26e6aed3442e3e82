"""Does what runs on a GPU come as far as it can without one?"""

from __future__ import annotations

import argparse
from dataclasses import fields

import gpu
import pytest
import torch

from hire_mlp_mm.bench import Settings
from hire_mlp_mm.bench.candidates import parse_name
from hire_mlp_mm.cli import bench
from hire_mlp_mm.cli.options import parse_size


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("verb", ["test", "bench"])
def test_without_a_gpu_a_line_says_so(verb, fork_tool):
    done = fork_tool("dev/gpu.py", verb)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert "skipped: no GPU here; --rehearse" in done.stdout


@pytest.mark.parametrize("options", gpu.BENCHES)
def test_what_is_measured_on_a_gpu_can_be_asked_for(options):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    args = parser.parse_args(["--device", "cuda", *options.split()])
    args.size = parse_size(args.size, 1, "")
    known = {field.name for field in fields(Settings)} & vars(args).keys()
    settings = Settings(**{name: getattr(args, name) for name in known})
    for name in (*args.forms, *args.against):
        parse_name(name, settings)


@pytest.mark.slow
def test_the_tests_for_a_gpu_are_found(run_tool):
    done = run_tool("dev/gpu.py", "test", "--rehearse", "--collect-only", "--quiet")
    assert done.returncode == 0, done.stdout
    for test in ("test_cuda_graphs", "test_a_gradient_scaler_goes_on", "test_two_processes_give"):
        assert test in done.stdout
