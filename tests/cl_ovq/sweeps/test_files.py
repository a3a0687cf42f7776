"""Sweep files: what is read, what is refused, and that those of the project hold."""

from pathlib import Path

import pytest

from cl_ovq.errors import UserError
from cl_ovq.sweeps import list_sweeps, load_sweep
from cl_ovq.sweeps.files import adjustable

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("path", sorted((ROOT / "ray_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_project_hold(path):
    sweep = load_sweep(str(path))
    assert sweep.trials >= 16
    assert sweep.title != sweep.name
    assert path.stem in list_sweeps()


def test_the_digits_sweep_is_one_of_16_trials():
    assert load_sweep("digits").trials == 16
    assert load_sweep("digits", ["search.trials=4"]).trials == 4


def test_a_trial_is_on_validation_data_and_the_test_is_not(sweep_file):
    sweep = load_sweep(str(sweep_file(selection={"seeds": [7], "test_seeds": 2})))
    trial, test = sweep.config({"optimizer.learning_rate": 0.5}, 7), sweep.config({}, 0, stream="test")
    assert (trial.evaluation.split, trial.seed, trial.optimizer.learning_rate) == ("validation", 7, 0.5)
    assert test.evaluation.split == "test"


def test_the_first_experiences_alone_choose_and_the_test_is_on_all(sweep_file):
    selection = {"protocol": "first_k_experiences", "experiences": 1, "test_seeds": 2}
    sweep = load_sweep(str(sweep_file(selection=selection)))
    assert sweep.config({}, 100).evaluation.stop_after == 1
    assert sweep.config({}, 0, stream="test").evaluation.stop_after is None


def test_overrides_reach_the_sweep_the_space_and_the_experiment(sweep_file):
    sweep = load_sweep(
        str(sweep_file()),
        ["strategy.epochs=2", "space.model.width={choice: [8, 16]}", "space.optimizer.learning_rate=null", "title=New"],
    )
    assert sweep.settings["strategy.epochs"] == 2
    assert [parameter.key for parameter in sweep.space.parameters] == ["model.width"]
    assert sweep.title == "New"
    number = load_sweep(str(sweep_file()), ["optimizer.weight_decay=1e-4"]).settings["optimizer.weight_decay"]
    assert number == 1e-4


def test_without_an_objective_it_is_the_streams_own(sweep_file, tmp_path):
    assert load_sweep(str(sweep_file())).objectives == {"accuracy": "max"}
    for stream, expected in (
        ("text", {"bits_per_byte": "min"}),
        ("regression", {"squared_error": "min"}),
        ("recall", {"accuracy": "max"}),
    ):
        experiment = tmp_path / f"{stream}.yaml"
        experiment.write_text(f"stream: {{name: {stream}}}\nmodel: {{name: sequence_model}}")
        sweep = load_sweep(str(sweep_file(experiment=str(experiment))))
        assert sweep.objectives == expected
        assert sweep.primary in expected
    with pytest.raises(UserError, match=r"stream\.validation: 0 leaves no validation data for selecting"):
        load_sweep(str(sweep_file(experiment=str(experiment), set={"stream.validation": 0})))
    with pytest.raises(
        UserError, match=r"objectives\.bits_per_byte: 'recall' has no bits_per_byte: its own is accuracy"
    ):
        load_sweep(str(sweep_file(experiment=str(experiment), objectives={"bits_per_byte": "min"})))


RANGE = {"optimizer.learning_rate": {"loguniform": [1e-3, 1e-2]}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"serach": {}}, "unknown key of a sweep 'serach': did you mean 'search'?"),
        ({"search": {"nam": "grid"}}, "unknown key 'search.nam': did you mean 'search.name'?"),
        ({"search": {"name": "gird"}}, "search.name: unknown choice 'gird': did you mean 'grid'?"),
        ({"search": {"name": "random"}}, "search.trials: the search 'random' needs a number of trials"),
        ({"search": {"name": "grid", "trials": 3}}, "search.trials: a grid determines the number of trials"),
        ({"search": {"name": "grid"}, "space": RANGE}, "a grid needs a list of values, not loguniform"),
        (
            {"search": {"name": "random", "trials": 3}, "space": {"model.depth": {"grid": [1, 2]}} | RANGE},
            "search.trials: 3 trials cannot be split evenly among the 2 combinations of model.depth",
        ),
        (
            {"search": {"name": "tpe", "trials": 3}, "space": {"model.depth": {"grid": [1, 2]}}},
            "space.model.depth: Optuna draws values: use choice, not grid",
        ),
        (
            {"search": {"name": "tpe", "trials": 3}, "objectives": {"accuracy": "max", "memory_bytes": "min"}},
            "tpe supports one objective",
        ),
        ({"search": {"name": "pareto", "trials": 3}}, "objectives: the search 'pareto' needs at least two"),
        ({"objectives": {"acuracy": "max"}}, "unknown metric of objectives 'acuracy': did you mean 'accuracy'?"),
        ({"objectives": {"accuracy": "maximum"}}, "unknown mode at objectives.accuracy 'maximum'"),
        (
            {"scheduler": {"name": "asha"}, "objectives": {"accuracy": "max", "memory_bytes": "min"}},
            "asha compares trials before their end",
        ),
        (
            {
                "scheduler": {"name": "pbt"},
                "search": {"name": "random", "trials": 2},
                "space": {"model.depth": {"choice": [1]}},
            },
            "unknown key that a trial can change as it goes .scheduler pbt. 'model.depth'",
        ),
        ({"set": {"evaluation.split": "test"}}, "selected on the validation stream, never on 'test'"),
        (
            {"space": {"evaluation.split": {"choice": ["test"]}}},
            "space.evaluation.split: the sweep sets this key itself",
        ),
        ({"space": {"seed": {"choice": [1, 2]}}}, "space.seed: the sweep sets this key itself"),
        ({"set": {"stream.validation_fraction": 0}}, "0 leaves no validation data"),
        ({"selection": {"seeds": [3], "test_seeds": 5}}, r"selection.seeds: \[3\] are also reported"),
        ({"selection": {"protocol": "held_out_seeds"}}, "held_out_seeds needs at least two different seeds"),
        ({"selection": {"protocol": "first_k_experiences"}}, "required with first_k_experiences"),
        ({"selection": {"experiences": 2}}, "not allowed with any other protocol"),
        ({"space": {"optimizer.learning_rat": {"choice": [1]}}}, "unknown key 'optimizer.learning_rat': did you mean"),
        ({"space": {"model.mixer": {"choice": ["ovq", "oqv"]}}}, "trial with model.mixer=oqv: .*unknown mixer 'oqv'"),
        ({"space": {"optimizer.learning_rate": {"chioce": [1]}}}, "'chioce': did you mean 'choice'?"),
        ({"space": {"optimizer.learning_rate": {"uniform": [2, 1]}}}, "2 is not smaller than 1"),
        ({"space": {"optimizer.learning_rate": {"loguniform": [0, 1]}}}, "0 has no logarithm"),
        ({"space": {"model.depth": {"randint": [1, 2.5]}}}, "is not two whole numbers"),
        (
            {"space": {"model.depth": {"choice": [1], "when": {"model.width": 3}}}},
            "which must be one of those above it",
        ),
        ({"space": {"model.depth": {"choice": [1, 1]}}}, "duplicate value"),
        (
            {"space": {"strategy.name": {"choice": ["naive", "der"]}, "strategy.alpha": {"choice": [0.1, 0.2]}}},
            r"strategy.alpha: 'naive' does not use it: .*: add to it in the space: when: {strategy.name: \[der\]}$",
        ),
        (
            {"space": {"strategy.name": {"choice": ["gem", "der"]}}, "set": {"strategy.margin": 0.1}},
            r"strategy.margin: 'der' .*: move it from set to space as {choice: \[0.1\], when: {strategy.name: ",
        ),
        ({"space": None}, "space: required in a sweep"),
        ({"resources": {"gpus": 1.5}}, "neither an integer nor a fraction"),
        ({"compare": ["model.width"]}, "unknown key at compare"),
        ({"experiment": "quikstart"}, "no experiment 'quikstart': did you mean 'quickstart'?"),
    ],
)
def test_a_mistake_is_one_line(sweep_file, sections, message):
    with pytest.raises(UserError, match=message) as raised:
        load_sweep(str(sweep_file(**sections)))
    assert "\n" not in str(raised.value)


def test_keys_of_parts_that_only_some_trials_have(sweep_file):
    space = {
        "strategy.name": {"choice": ["naive", "replay", "der"]},
        "strategy.buffer_size": {"choice": [10, 20], "when": {"strategy.name": ["replay", "der"]}},
        "strategy.alpha": {"uniform": [0.1, 0.9], "when": {"strategy.name": ["der"]}},
    }
    sweep = load_sweep(str(sweep_file(space=space, search={"name": "random", "trials": 30})))
    found = [(point, sweep.config(point, 0).strategy) for point in sweep.points()]
    assert {strategy.name for _, strategy in found} == {"naive", "replay", "der"}
    for point, strategy in found:
        assert hasattr(strategy, "alpha") == ("strategy.alpha" in point) == (strategy.name == "der")
        assert hasattr(strategy, "buffer_size") == ("strategy.buffer_size" in point) == (strategy.name != "naive")
        assert all(getattr(strategy, key.removeprefix("strategy.")) == value for key, value in point.items())


def test_an_unknown_sweep_is_named():
    with pytest.raises(UserError, match=r"no sweep 'digit': did you mean 'digits'\?"):
        load_sweep("digit")


def test_what_a_trial_may_change_as_it_goes():
    optimizer = {"optimizer.learning_rate", "optimizer.weight_decay", "optimizer.momentum"}
    schedule = {"optimizer.final_share", "optimizer.step_factor"}
    losses = {"strategy.strength", "strategy.alpha", "strategy.beta", "strategy.temperature"}
    prompts = {"strategy.match_weight", "strategy.orthogonality"}
    assert {*adjustable()} == optimizer | schedule | losses | prompts | {"model.dropout"}
