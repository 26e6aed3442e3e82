"""Does the soak find what grows, and let pass what only wavers?"""

from __future__ import annotations

import os
import sys
import threading

import numpy as np
import pytest
import soak
import torch
from PIL import Image

from hire_mlp_mm import cli

ITERATIONS = np.arange(10, 2001, 10)


def series(**figures) -> np.ndarray:
    """Samples of 2,000 iterations; what is not given stands still."""
    samples = np.zeros(len(ITERATIONS), soak.SAMPLE)
    samples["iteration"] = ITERATIONS
    for name, values in figures.items():
        samples[name] = values
    return samples


def growing(samples: np.ndarray) -> list[str]:
    return [name for name, trend in soak.judge(samples).items() if not trend.flat]


NOISE = np.random.default_rng(0).normal(size=len(ITERATIONS))


@pytest.mark.parametrize("name", soak.LIMITS)
def test_twice_the_limit_is_found_under_noise(name):
    leak = 2 * soak.LIMITS[name] * ITERATIONS / 1000
    noise = soak.LIMITS[name] * NOISE / 4
    assert growing(series(**{name: 500 + noise})) == []
    assert growing(series(**{name: 500 + noise + leak})) == [name]


def test_a_slope_is_per_1000_iterations():
    trend = soak.judge(series(in_use=100 + 0.003 * ITERATIONS))["in_use"]
    assert trend.slope == pytest.approx(3)
    assert trend.error == pytest.approx(0, abs=1e-6)
    assert (trend.first, trend.last) == pytest.approx((103.03, 106))


def test_warm_up_is_not_judged():
    assert growing(series(memory=np.minimum(ITERATIONS, 1000), files=ITERATIONS < 900)) == []


def test_noise_too_strong_to_tell_does_not_pass():
    """As far down as up, and still nobody can say that nothing leaks below the waves."""
    waves = 25 * np.sin(2 * np.pi * ITERATIONS / 500)
    assert soak.judge(series(in_use=waves))["in_use"].slope < 0
    assert growing(series(in_use=200 + waves)) == ["in_use"]


def test_one_file_in_400_iterations_is_found():
    assert growing(series(files=20 + ITERATIONS // 400)) == ["files"]


@pytest.fixture
def stop():
    """An event for which threads may wait until the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("leak", [None, "in_use", "objects", "threads", "files"])
def test_a_leak_in_this_process_is_measured(leak, stop):
    kept = []

    def one_more(i: int) -> None:
        if leak == "in_use":
            kept.append(torch.zeros(5000))
        elif leak == "objects":
            kept.append([i])
        elif leak == "files" and i % 50 == 0:
            kept.append(open(os.devnull))  # noqa: SIM115  left open is what is meant
        elif leak == "threads" and i % 50 == 0:
            threading.Thread(target=stop.wait, daemon=True).start()

    meter = soak.Meter("a loop", 600)
    for i in range(1, 601):
        torch.rand(i % 37 + 1, i % 41 + 1).sum()
        one_more(i)
        meter.after(i)
    found = set(growing(meter.samples)) - {"memory", "held"}  # what the other tests left moves it
    for file in kept if leak == "files" else ():
        file.close()
    # A tensor and a thread are objects, too.
    assert found == {leak} - {None} | ({"objects"} if leak in ("in_use", "threads") else set())


def main(monkeypatch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", ["soak.py", *map(str, args)])
    cli.run(soak.main, "soak.py")


def test_exit_codes(monkeypatch, tmp_path, capsys):
    made_up = series(memory=900, files=20)
    monkeypatch.setattr(soak, "soak_apart", lambda *_: made_up)
    main(monkeypatch, "--plot", tmp_path / "flat.png")
    made_up = series(memory=900, files=20 + ITERATIONS // 100)
    with pytest.raises(SystemExit) as stop:
        main(monkeypatch, "--plot", tmp_path / "leak.png")
    assert stop.value.code == "soak.py: error: not flat: files in training, files in inference"
    assert capsys.readouterr().out.count("| grows |") == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--iterations", 39], "--iterations 39: expected 40 or more"),
        (["--plot", "mine.png"], "--plot mine.png exists; name a new file"),
        (["--plot", "plot.jpg"], "--plot plot.jpg: expected a name that ends in .png"),
        (["--plot", "no/plot.png"], "--plot no/plot.png: expected a name"),
    ],
)
def test_errors_are_one_line(args, said, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.png").write_text("precious")
    with pytest.raises(SystemExit) as stop:
        main(monkeypatch, *args)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"soak.py: error: {said}")
    assert (tmp_path / "mine.png").read_text() == "precious"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_soak(run_tool, tmp_path):
    """Both parts for real; 40 iterations are all warm-up, so memory cannot be found flat."""
    plot = tmp_path / "soak.png"
    done = run_tool("dev/soak.py", "--iterations", 40, "--plot", plot, timeout=500)
    assert done.returncode == 1, done.stderr
    assert "soak.py: error: not flat: " in done.stderr
    for part in soak.PARTS:
        rows = [row for row in done.stdout.splitlines() if row.startswith(f"| {part} |")]
        assert [row.split("|")[2].strip() for row in rows] == [
            soak.title(name) for name in soak.LIMITS
        ]
        assert f"{part}, 40 / 40: " in done.stdout
        for counted in ("threads", "files"):
            assert any(counted in row and row.endswith("| flat |") for row in rows)
    assert min(Image.open(plot).size) > 300
