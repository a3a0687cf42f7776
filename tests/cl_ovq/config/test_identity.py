"""What of a configuration decides a run's numbers: how it is trained, and what is measured on the finished model."""

import copy
import dataclasses
import io

import pytest
from rich.console import Console

from cl_ovq.config import EvaluationConfig, load_config, to_dict
from cl_ovq.config.identity import differences, fingerprint, identity
from cl_ovq.errors import UserError
from cl_ovq.runs.groups import group_of
from cl_ovq.runs.run import run_experiment

# One change for each key of the section `evaluation`.
WHILE_TRAINING = {
    "split": "validation",
    "batch_size": 64,
    "every_steps": 7,
    "rows": "[1]",
    "dictionary_every": 3,
    "stop_after": 1,
}
AFTERWARDS = {"lengths": "[16,32]", "length_tokens": 64, "capacities": "[2]", "log_length_scaling": "true"}


def of(config):
    return identity(to_dict(config))


@pytest.mark.parametrize(("key", "value"), WHILE_TRAINING.items())
def test_what_is_recorded_while_training_goes_on_is_part_of_it(tiny, key, value):
    one, other = of(tiny()), of(tiny(f"evaluation.{key}={value}"))
    assert differences(one.training, other.training).keys() == {f"evaluation.{key}"}
    assert one.evaluation == other.evaluation


@pytest.mark.parametrize(("key", "value"), AFTERWARDS.items())
def test_what_is_measured_on_the_finished_model_does_not_decide_training(tiny, key, value):
    one, other = of(tiny()), of(tiny(f"evaluation.{key}={value}"))
    assert one.training == other.training
    assert differences(one.evaluation, other.evaluation).keys() == {f"evaluation.{key}"}
    assert differences(one.whole, other.whole).keys() == {f"evaluation.{key}"}


def test_every_key_of_evaluation_is_one_or_the_other():
    names = {field.name for field in dataclasses.fields(EvaluationConfig)}
    assert WHILE_TRAINING.keys() | AFTERWARDS.keys() == names


def test_where_and_on_what_a_run_is_computed_decides_nothing(tiny):
    one = of(tiny())
    assert of(tiny("threads=2", "output_dir=there", "tracking.run_name=other", "checkpoint.every_steps=1")) == one
    assert of(tiny("seed=1")) != one
    assert of(load_config("quickstart")) != one


def test_keys_that_a_stored_configuration_lacks_count_with_their_default(tiny):
    new = to_dict(tiny("dictionary.capacity=24"))
    old = copy.deepcopy(new) | {"threads": 2}
    assert old["dictionary"].pop("half_life") is None
    assert old["evaluation"].pop("lengths") == []
    del old["evaluation"]["stop_after"], old["figures"]
    assert identity(old) == identity(new)
    assert of(tiny("dictionary.half_life=100")).training != identity(old).training
    assert of(tiny("dictionary.capacity=25")).training != identity(old).training


def test_fingerprints_tell_identities_apart(tiny):
    one, same, other = (of(tiny(*more)) for more in ((), ("threads=1",), ("evaluation.length_tokens=64",)))
    assert fingerprint(one.whole) == fingerprint(same.whole) != fingerprint(other.whole)
    assert fingerprint(one.training) == fingerprint(other.training)
    assert fingerprint({"a": 1, "b": [2.0, 0.5]}) == fingerprint({"b": [2, 0.5], "a": 1.0})  # as they are equal


def older(tree):
    """A stored configuration from before some keys were there."""
    tree = copy.deepcopy(tree)
    del tree["dictionary"]["half_life"], tree["evaluation"]["stop_after"], tree["evaluation"]["lengths"]
    return tree


def test_runs_from_before_and_after_a_key_are_compared_as_seeds(run):
    first, second = run(), run("seed=1")
    group = group_of([dataclasses.replace(first, config=older(first.config)), second], "these")
    assert list(group.runs) == [0, 1]
    changed = copy.deepcopy(second.config)
    changed["dictionary"]["half_life"] = 100.0
    with pytest.raises(UserError, match=r"these contains runs with .* \(they differ in dictionary\.half_life\)"):
        group_of([first, dataclasses.replace(second, config=changed)], "these")


def test_a_finished_run_from_before_a_key_is_read(run, tiny, tmp_path):
    result = run()
    dataclasses.replace(result, config=older(result.config)).write(tmp_path)
    read = run_experiment(tiny(f"output_dir={tmp_path}"), Console(file=io.StringIO()), resume=True)
    assert read.metrics == result.metrics
    with pytest.raises(UserError, match=r"dictionary\.half_life is None in the checkpoint, but 100 now"):
        run_experiment(
            tiny(f"output_dir={tmp_path}", "dictionary.half_life=100"), Console(file=io.StringIO()), resume=True
        )
