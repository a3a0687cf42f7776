"""`cl-ovq show-stream` and `cl-ovq lengths`: what they print and draw is what is there."""

import io

import numpy as np
import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from PIL import Image
from rich.console import Console
from scipy import stats
from torch.utils.data import TensorDataset

from cl_ovq.cli.preview import print_stream
from cl_ovq.config import load_config, load_stream_config
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import load_stream
from streams import Stream


def test_images_are_counted_by_class_and_drawn(call, tmp_path):
    code, out, err = call("show-stream", "split_digits", "experiences=5", "shuffle_classes=false")
    assert (code, err) == (0, "")
    # 178 zeros and 182 ones: 142 and 146 after a fifth for the test, of which a tenth each is for validation.
    assert "0: 128, 1: 131" in out
    assert "images of 1 x 8 x 8, values 0 to 1; 10 outputs" in out
    sheet = Image.open(tmp_path / "runs" / "streams" / "split_digits.png")
    assert len(sheet.convert("L").getcolors()) > 10


@pytest.mark.parametrize(("shape", "words"), [((3, 8, 8), "images of 3 x 8 x 8"), ((5,), "vectors of 5 features")])
def test_a_benchmark_of_avalanche(tmp_path, shape, words):
    def part(seed):
        x = torch.randn(40, *shape, generator=torch.Generator().manual_seed(seed))
        data = TensorDataset(x, torch.arange(40) % 4)
        data.targets = data.tensors[1].tolist()
        return data

    stream = Stream.from_avalanche(nc_benchmark(part(0), part(1), n_experiences=2, task_labels=False))
    console = Console(file=io.StringIO(), width=200)
    print_stream(stream, console, tmp_path / "sheet.png")
    assert words in console.file.getvalue()
    assert (tmp_path / "sheet.png").exists() == (len(shape) == 3)


def test_domain_incremental_classes_go_by_their_names(call):
    options = ("scenario=domain_incremental", "class_order=[9,8,7,6,5,4,3,2,1,0]")
    _, out, _ = call("show-stream", "split_digits", *options, "--output", "sheet.png")
    assert "9: " in out.splitlines()[4]
    assert "8: " in out.splitlines()[4]


def test_vectors_that_are_asked_for_are_told_by_their_numbers(call):
    options = ("tasks=1", "samples=300", "dimensions=20", "noise=0")
    code, out, err = call("show-stream", "sine", *options)
    assert (code, err) == (0, "")
    targets = load_stream(load_stream_config("sine", options)).samples.targets[:300].numpy()
    said = " ".join(out.replace("│", " ").split())
    assert f"20 numbers a sample, mean {targets.mean():.2f}, variance {targets.var(ddof=1):.3f}" in said
    assert "vectors of 20 features" in said


def test_sequences_are_shown_in_words(call, tmp_path):
    code, out, err = call("show-stream", "rebinding", "experiences=2", "pairs=2", "length=16", "train=50", "seed=3")
    assert (code, err) == (0, "")
    assert "1: keys 1/2" in out
    assert "2.0 a sequence" in out
    assert "->v" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("recal",), "did you mean 'recall'?"),
        (("recall", "lenth=3"), "unknown key 'stream.lenth': did you mean 'stream.length'?"),
        (("recall", "pairs=40"), "40 bindings and 40 queries need at least 160 tokens"),
        (("split_digits", "--output", "/proc/nothing/sheet.png"), "/proc/nothing/sheet.png cannot be written"),
    ],
)
def test_mistakes_are_one_line(call, arguments, line):
    code, _, err = call("show-stream", *arguments)
    assert code == 2
    assert line in err
    assert len(err.strip().splitlines()) == 1


def test_runs_are_compared_over_length(call, tmp_path):
    small = ["stream.train=32", "strategy.epochs=1", "evaluation.lengths=[32,64]", "evaluation.length_tokens=128"]

    def run(folder, *settings):
        config = load_config("paper/recall", [*small, *settings, f"output_dir={tmp_path / folder}"])
        return run_experiment(config, Console(file=io.StringIO()))

    runs = [run(f"linear/{seed}", "model.mixer=linear", f"seed={seed}") for seed in (0, 1)]
    run("softmax", "model.mixer=softmax")
    code, out, err = call("lengths", "softmax", "linear")
    assert (code, err) == (0, "")
    assert "softmax naive " in out
    values = [one.lengths[1]["value"] for one in runs]
    half = stats.t.ppf(0.975, 1) * stats.sem(values)
    (line,) = [line for line in out.splitlines() if "linear naive " in line]
    assert line.split("│")[3].strip() == f"{np.mean(values):.3f} +- {half:.3f}"
    assert Image.open(tmp_path / "lengths.png").width > 1000
    # Evaluated now, at another length: what a run would have measured.
    wanted = [run(f"more/{seed}", "model.mixer=linear", f"seed={seed}", "evaluation.lengths=[128]") for seed in (0, 1)]
    code, out, err = call("lengths", "linear", "--at", "128", "--tokens", "128", "--output", "new/figure.png")
    assert code == 0
    values = [one.lengths[0]["value"] for one in wanted]
    (line,) = [line for line in out.splitlines() if "linear naive " in line]
    assert line.split("│")[2].strip().startswith(f"{np.mean(values):.3f} +- ")
    assert (tmp_path / "new" / "figure.png").exists()
    sharp = ["evaluation.lengths=[128]", "evaluation.log_length_scaling=true", "evaluation.length_tokens=2048"]
    wanted = run("sharp", "model.mixer=softmax", *sharp)
    code, out, _ = call("lengths", "softmax", "--at", "128", "--tokens", "2048", "--log-length-scaling")
    assert f"│ {wanted.lengths[0]['value']:.3f} │" in out


def test_mistakes_about_lengths_are_one_line(call, tmp_path):
    config = load_config("paper/recall", ["stream.train=32", "evaluation.lengths=[]", f"output_dir={tmp_path / 'run'}"])
    run_experiment(config, Console(file=io.StringIO()))
    for arguments, line in (
        (("run",), "the run was not evaluated at other lengths: set lengths with --at"),
        (("run", "--at", "9"), "evaluation.lengths: 9: "),
        (("run", "--at", "64", "--output", "/proc/nothing/x.png"), "/proc/nothing/x.png cannot be written"),
        (
            ("run", "--output", "x.zzz"),
            "output: x.zzz has the extension '.zzz', which is not a picture format: known",
        ),
        (("run", "--output", "x"), "output: x has no extension, which is not a picture format"),
        (("run", "--at", "1000000000000"), "lengths[0]: 1000000000000 is too large: it must be at most 16777216"),
        (("run", "--at", "64", "--tokens", "9000000000000"), "length_tokens: 9000000000000 is too large"),
        (("run", "--log-length-scaling"), "--log-length-scaling requires --at"),
        (("rum",), "no file or directory 'rum': did you mean 'run'?"),
        (("elsewhere",), "no file or directory 'elsewhere'; as a run name"),
    ):
        code, _, err = call("lengths", *arguments)
        assert code == 2
        assert line in err
        assert len(err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    code, out, _ = call("evaluate", "run", "evaluation.lengths=[64]", "evaluation.length_tokens=64")
    assert (code, "state bytes at the first" in out, "at 64 tokens" in out) == (0, True, False)
