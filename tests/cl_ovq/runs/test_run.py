"""Whole runs: what they write, that a seed decides them, and every scenario, strategy and scope."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from cl_ovq.config import load_config, to_dict
from cl_ovq.config.load import from_stored
from cl_ovq.errors import UserError
from cl_ovq.evaluation.metrics import all_metrics, to_matrix
from cl_ovq.runs.checking import check_config
from cl_ovq.runs.folder import FIGURES
from cl_ovq.runs.run import run_experiment
from cl_ovq.runs.setup import describe, load_stream
from streams import rows_of

LEARNED = ("matrix", "matrices", "metrics", "dictionary")


def test_the_directory_holds_the_result(run):
    result = run("figures=true")
    folder = Path(result.output_dir)
    assert json.loads((folder / "results.json").read_text()) == json.loads(result.to_json())
    assert result.artifacts == {
        "results": "results.json",
        "config": "config.yaml",
        "matrix": "matrix.png",
        "over_experiences": "over_experiences.png",
        "by_age": "by_age.png",
        "dictionary_growth": "dictionary_growth.png",
        "dictionary_owners": "dictionary_owners.png",
        "dictionary_entries": "dictionary_entries.png",
    }
    assert {path.name for path in folder.iterdir()} == {*result.artifacts.values(), "checkpoint.bin", "history.jsonl"}
    assert yaml.safe_load((folder / "config.yaml").read_text()) == result.config
    for name in (name for name in result.artifacts.values() if name.endswith(".png")):
        with Image.open(folder / name) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 200
            assert np.asarray(picture.convert("L")).std() > 5
    assert not (folder.parent / "runs").exists()  # no store where tracking is off
    assert result.run_id is None


def test_the_written_configuration_makes_the_same_run(run, tmp_path):
    result = run()
    written = load_config(Path(result.output_dir) / "config.yaml", [f"output_dir={tmp_path}"])
    assert to_dict(written) == result.config | {"output_dir": str(tmp_path)}


def test_metrics_are_those_of_the_matrix(run):
    result = run()
    assert np.shape(result.matrix) == (3, 2)
    expected = all_metrics(to_matrix(result.matrix))
    masked = all_metrics(to_matrix(result.matrices["task_masked_accuracy"]))
    assert result.metrics == expected | {
        "forward_transfer_task_masked": masked["forward_transfer"],
        "task_masked_accuracy": masked["accuracy"],
    }
    assert 0 < result.metrics["accuracy"] < 1


def test_it_says_what_each_experience_holds(run):
    config = from_stored(run().config)
    held = [
        sorted({str(int(stream.samples.targets[row])) for row in rows_of(part.dataset)})
        for stream in [load_stream(config)]
        for part in stream.benchmark.streams["test"]
    ]
    assert [sorted(names) for names in run().experiences] == held
    assert run("evaluation.stop_after=1").experiences == run().experiences[:1]


def test_history_ends_with_what_the_summary_says(run):
    dictionary = run().dictionary
    last = dictionary["history"][-1]
    for name in ("step", "experience", "tokens", "size", "effective_size"):
        assert last[name] == pytest.approx(dictionary[name])
    assert last["step"] == run().provenance["train_steps"]


def test_provenance_is_complete(run):
    provenance = run("strategy.epochs=2").provenance
    assert provenance["seed"] == 0
    assert {"version", "revision", "dirty"} <= set(provenance["code"])
    assert {"python", "torch", "avalanche-lib", "mlflow", "numpy"} <= set(provenance["packages"])
    assert {"dataset", "source", "files"} <= set(provenance["data"])
    assert all(len(file["sha256"]) == 64 for file in provenance["data"]["files"].values())
    assert "CPU" in provenance["device"]
    assert 0 < provenance["train_seconds"] < provenance["wall_seconds"]
    assert provenance["peak_memory_bytes"] > 50e6
    assert provenance["dictionary_bytes"] == run("strategy.epochs=2").dictionary["bytes"] > 0
    assert provenance["replay_samples"] == 20
    assert provenance["replay_bytes"] == 20 * 64
    assert provenance["finished"]


def test_one_seed_gives_one_result(run):
    # The second run has other settings that must not matter, and so is not the first one's cached result.
    first, second = run("seed=3"), run("seed=3", "tracking.run_name=again")
    assert first is not second
    for part in LEARNED:
        assert getattr(first, part) == getattr(second, part), part


def test_another_seed_gives_another_result(run):
    assert run("seed=3").matrix != run("seed=4").matrix
    assert run("seed=3").dictionary["history"] != run("seed=4").dictionary["history"]


def test_figures_are_drawn_if_asked_for(run):
    with_figures, without = run("figures=true"), run()
    assert set(without.artifacts) == {"results", "config"}
    assert list(Path(without.output_dir).glob("*.png")) == []
    assert without.matrix == with_figures.matrix


def test_figures_are_files_of_the_kind_that_is_asked_for(run, tiny):
    result = run("figures=true", "figure_format=svg")
    assert result.artifacts["matrix"] == "matrix.svg"
    assert {path.suffix for path in Path(result.output_dir).iterdir() if path.stem in FIGURES} == {".svg"}
    assert result.figures["matrix"]._repr_mimebundle_()["image/svg+xml"].startswith("<?xml")
    with pytest.raises(UserError, match="figure_format: pdf has no effect with figures=false"):
        check_config(tiny("figure_format=pdf", "figures=false"))


def test_what_is_measured_changes_nothing(run):
    assert run("evaluation.dictionary_every=5").matrix == run().matrix


@pytest.mark.parametrize("scope", ["sequence", "task", "stream"])
@pytest.mark.parametrize("scenario", ["class_incremental", "domain_incremental", "task_incremental"])
def test_every_scenario_and_scope(run, scope, scenario):
    result = run(f"stream.scenario={scenario}", f"dictionary.scope={scope}", "strategy.name=naive")
    assert np.shape(result.matrix) == (3, 2)
    assert result.config["stream"]["scenario"] == scenario
    assert result.dictionary["scope"] == ("sequence" if scope == "sequence" else "shared")
    assert bool(result.dictionary["history"]) == (scope != "sequence")
    chance = 0.1 if scenario == "class_incremental" else 0.2
    assert result.metrics["learning_accuracy"] > 1.5 * chance
    if scenario == "task_incremental":
        assert result.matrices["task_masked_accuracy"] == result.matrix
        assert all(np.isfinite(result.matrices["loss"]).ravel())


@pytest.mark.parametrize("strategy", ["naive", "cumulative", "joint"])
def test_every_strategy(run, strategy):
    result = run(f"strategy.name={strategy}")
    assert result.provenance["replay_bytes"] == 0
    if strategy == "joint":
        assert result.matrix[1] == [None, None]
        assert result.metrics["forgetting"] is None
        assert None not in result.matrix[0] + result.matrix[2]
        assert result.metrics["accuracy"] > 0.2
    else:
        assert not any(None in row for row in result.matrix)


def test_softmax_has_no_dictionary(run):
    result = run("model.mixer=softmax")
    assert result.dictionary["scope"] == "none"
    assert (result.provenance["dictionary_bytes"], result.dictionary["history"]) == (0, [])


def test_one_experience(run):
    result = run("stream.experiences=1")
    assert np.shape(result.matrix) == (2, 1)
    assert result.metrics["forgetting"] is None


def test_validation_stream(run):
    result = run("evaluation.split=validation")
    assert result.matrix != run().matrix
    assert result.dictionary == run().dictionary


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["evaluation.split=validation", "stream.validation_fraction=0"], "evaluation.split: .* known: train, test"),
        (["stream.experiences=11"], "stream: experiences=11: must be from 1 to 10"),
        (["stream.class_order=[0, 1]"], r"stream: class_order=\[0, 1\]: must list each class"),
    ],
)
def test_mistakes_that_show_with_the_data(tiny, overrides, line):
    config = tiny(*overrides)
    check_config(config)
    with pytest.raises(UserError, match=line):
        load_stream(config)


@pytest.mark.parametrize("tag", ["stream", "seed", "device"])
def test_a_tag_that_every_run_has_is_not_overwritten(tiny, tag):
    with pytest.raises(UserError, match=rf"^tracking\.tags\.{tag}: every run already has this tag"):
        check_config(tiny(f"tracking.tags.{tag}=mine"))


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["strategy.buffer_bytes=1"], "strategy.buffer_bytes: 1 is too small: one sample takes 64 bytes"),
        (["strategy.name=der", "strategy.buffer_bytes=64"], "is too small: one sample takes 104 bytes"),
        (["strategy.name=gem", "strategy.buffer_bytes=1"], "strategy.buffer_bytes: 1 is too small"),
        (["strategy.name=agem", "strategy.buffer_bytes=1"], "strategy.buffer_bytes: 1 is too small"),
        (["strategy.name=gdumb", "strategy.buffer_bytes=1"], "strategy.buffer_bytes: 1 is too small"),
        (["dictionary.capacity=100000000000"], "model: not enough memory for it"),
        (["evaluation.stop_after=3"], "evaluation.stop_after: 3 is too large: 'split_digits' has 2 experiences"),
        (["device=cpu:3"], "device: 'cpu:3' does not exist"),
    ],
)
def test_what_cannot_run_leaves_nothing_behind(tiny, tmp_path, monkeypatch, overrides, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=line):
        run_experiment(tiny(*overrides, "tracking.enabled=true"), Console(file=io.StringIO()))
    assert not list(tmp_path.rglob("results.json"))
    assert not list(tmp_path.glob("runs/split_digits"))


def test_names_of_runs(tiny):
    assert describe(tiny()) == "ovq-stream replay seed 0"
    assert describe(tiny("model.mixer=softmax", "seed=2", "strategy.name=naive")) == "softmax naive seed 2"
    assert describe(tiny("tracking.run_name=mine")) == "mine"


def test_what_is_evaluated_does_not_change_what_is_learned(run):
    """Its loaders draw random numbers, and its batches are as many as there is to evaluate."""
    common = ("stream.experiences=5", "model.dropout=0.1")
    whole, part = run(*common), run(*common, "evaluation.stop_after=3")
    assert [row[:3] for row in part.matrix] == [row[:3] for row in whole.matrix[:4]]
