"""Sweep and study files with mistakes of every kind: one line, or they are taken for what they say."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path

import pytest
import yaml

from cl_ovq.errors import UserError
from cl_ovq.studies import load_study
from cl_ovq.sweeps import load_sweep

ROOT = Path(__file__).resolve().parents[3]
SWEEPS = sorted((ROOT / "ray_configs").glob("*.yaml"))
STUDIES = sorted((ROOT / "experiments" / "studies").glob("*.yaml"))
ODD = (
    *(None, True, 0, -1, 2, 10**11, 10**30, 0.5, -0.5, math.inf, -math.inf, math.nan, 1e308),
    *("", "null", "0", "x", "\x00", "[/b]", "${model.width}", "${oc.env:HOME}", "a" * 300, "../../etc"),
    *([], {}, [[]], [{}], {"a": 1}, [1, 1], [math.nan, 1], [0, math.inf], ["a", "a"], [None], list(range(3000))),
)


def small(tree):
    """Return a file's content with few rows or values: two of each list, one option of each axis."""
    tree = copy.deepcopy(tree)
    for description in tree.get("space", {}).values():
        for kind in ("grid", "choice"):
            if kind in description:
                description[kind] = description[kind][:2]
    for grid in tree.get("grids", [])[1:]:
        tree["grids"].remove(grid)
    for grid in tree.get("grids", []):
        for axis, options in grid.items():
            grid[axis] = dict(list(options.items())[:1])
            for option in grid[axis].values():
                if (option or {}).get("tune"):
                    option["tune"] = {key: values[:2] for key, values in option["tune"].items()}
    for key, values in tree.get("tuning", {}).get("grid", {}).items():
        tree["tuning"]["grid"][key] = values[:2]
    tree.pop("refit", None)
    tree.pop("reference", None)
    return tree


def places(tree, path=()):
    """Return the paths of everything in nested mappings and lists."""
    found = [path] if path else []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        found += places(value, (*path, key))
    return found


def mutated(tree, generator):
    """Return a copy in which one thing is odd: a value, a key, one too many, or one too few."""
    tree = copy.deepcopy(tree)
    *way, last = generator.choice(places(tree))
    inner = tree
    for step in way:
        inner = inner[step]
    match generator.randrange(6):
        case 0:
            del inner[last]
        case 1 if isinstance(inner, dict):
            inner[f"{last}x"] = inner.pop(last)
        case 2 if isinstance(inner, list):
            inner.append(inner[last])
        case _:
            inner[last] = copy.deepcopy(generator.choice(ODD))
    return tree


def check_mutants(tmp_path, number, seed):
    generator, path, refused = random.Random(seed), tmp_path / "mutant.yaml", 0
    cases = [(load_sweep, file) for file in SWEEPS] + [(load_study, file) for file in STUDIES]
    trees = [(load, small(yaml.safe_load(file.read_text()))) for load, file in cases]
    for turn in range(number):
        load, tree = trees[turn % len(trees)]
        path.write_text(yaml.safe_dump(mutated(tree, generator), sort_keys=False))
        try:
            load(str(path))
        except UserError:  # one line by its nature
            refused += 1
    return refused


def test_mutants_of_the_shipped_files_are_one_line_or_accepted(tmp_path):
    assert check_mutants(tmp_path, 48, seed=0) > 24


@pytest.mark.slow
def test_many_mutants_of_the_shipped_files(tmp_path):
    assert check_mutants(tmp_path, 1500, seed=1) > 750


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
SWEEP = "experiment: quickstart\nsearch: {name: grid}\nspace: {optimizer.learning_rate: {choice: [1e-3, 1e-2]}}\n"
STUDY = "grids: [{model: {mlp: {experiment: quickstart, model.name: mlp}}}]\n"
LISTS = ("model.width", "model.depth", "model.heads", "dictionary.capacity", "dictionary.chunk_size", "threads")
HUGE = "".join(f"  {key}: {{choice: {list(range(1, 75))}}}\n" for key in LISTS)


@pytest.mark.parametrize(
    ("load", "text", "line"),
    [
        (load_sweep, "", "experiment: required in a sweep"),
        (load_sweep, "- 1\n", "does not contain a mapping"),
        (load_sweep, BOMB, "aliases expand without end"),
        (load_sweep, SWEEP + "selection: {seeds: [100, 100]}", "selection.seeds: 100 is listed twice"),
        (load_sweep, SWEEP + "selection: {seeds: [-1]}", "selection.seeds[0]: -1 is too small"),
        (load_sweep, SWEEP + "selection: {test_seeds: 10000000}", "selection.test_seeds: 10000000 is too large"),
        (load_sweep, SWEEP + "selection: {seeds: 3}", "selection.seeds: 3 is not a list"),
        (load_sweep, SWEEP + "budget: {trial_minutes: 0}", "budget.trial_minutes: 0 is too small"),
        (load_sweep, SWEEP + "budget: {trial_minutes: .nan}", "budget.trial_minutes: nan is not a finite number"),
        (load_sweep, SWEEP + "budget: {trialminutes: 1}", "did you mean 'budget.trial_minutes'?"),
        *(
            (load_sweep, SWEEP[:-2] + f", model.width: {{choice: [16, 32], when: {when}}}}}\n", line)
            for when, line in (
                (
                    "{optimizer.learning_rate: []}",
                    "when.optimizer.learning_rate: [] is not a value or a list of values",
                ),
                ("[]", "space.model.width.when: [] is not a mapping"),
                ("false", "space.model.width.when: False is not a mapping"),
            )
        ),
        (load_sweep, SWEEP + "title: [1]", "title: [1] is not text or null"),
        (load_sweep, SWEEP + "set: 3", "set: 3 is not a mapping or null"),
        (load_sweep, SWEEP + "objectives: {accuracy: [max]}", "objectives.accuracy: ['max'] is not text"),
        (load_sweep, SWEEP + "compare: optimizer.learning_rate", "compare: 'optimizer.learning_rate' is not a list"),
        (load_sweep, "experiment: [quickstart]\nspace: {}", "experiment: ['quickstart'] is not text"),
        (
            load_sweep,
            "experiment: quickstart\nsearch: {name: grid}\nspace:\n" + HUGE,
            f"space: the grid has {74**6:,} combinations, but a sweep may have at most 100,000",
        ),
        (load_sweep, SWEEP + "search: {name: grid}", "duplicate key search"),
        (load_study, "", "grids: a study needs at least one grid"),
        (load_study, "text", "does not contain a mapping"),
        (load_study, BOMB, "aliases expand without end"),
        (load_study, STUDY + "seeds: [100, 100]", "seeds: 100 is listed twice"),
        (load_study, STUDY + "seeds: 1000000000000", "seeds: 1000000000000 seeds are more than 1000"),
        (load_study, STUDY + "seeds: -1", "seeds: -1 is neither"),
        (load_study, STUDY + "seeds: [-1]", "seeds: [-1] is not a list of non-negative 64-bit integers"),
        (load_study, STUDY + "tuning: {seeds: [100, 100]}", "tuning.seeds: 100 is listed twice"),
        (load_study, STUDY + "tuning: {metric: [accuracy]}", "tuning.metric: ['accuracy'] is not text or null"),
        (load_study, STUDY + "tuning: {experiences: 0, protocol: first_k_experiences}", "experiences: 0 is too small"),
        (load_study, STUDY + "tuning: {sedes: [1]}", "unknown key of tuning 'sedes': did you mean 'seeds'?"),
        (load_study, STUDY + "tuning: {grid: {model.width: 3}}", "tuning.grid.model.width: 3 is not a list"),
        (load_study, STUDY + "refit: {model: [mlp]}", "refit.model: ['mlp'] is not text"),
        (load_study, STUDY + "grid: []", "unknown key of a study 'grid': did you mean 'grids'?"),
        (load_study, "grids: [{model: {}}]", "an axis has no options"),
        (load_study, "grids: {model: {}}", "grids: {'model': {}} is not a list or null"),
        (load_study, "grids: [{model: {mlp: {experiment: [1]}}}]", "experiment: [1] is not the name of an experiment"),
        (
            load_study,
            STUDY + f"tuning: {{grid: {{{', '.join(f'{key}: {list(range(1, 75))}' for key in LISTS)}}}}}",
            f"{74**6:,} configurations to try, but a study may have at most",
        ),
        (
            load_study,
            "grids:\n- "
            + "\n  ".join(f"axis{i}: {{{', '.join(f'o{j}: {{}}' for j in range(10))}}}" for i in range(11)),
            f"grids[0]: {10**11:,} rows, but a study may have at most",
        ),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_expanded(tmp_path, load, text, line):
    path = tmp_path / "given.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        load(str(path))
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ("uniform: [0, .inf]", "inf is not a valid bound"),
        ("uniform: [.nan, 1]", "nan is not a valid bound"),
        ("uniform: [1, 1]", "1 is not smaller than 1"),
        ("uniform: [2, 1]", "2 is not smaller than 1"),
        ("loguniform: [0, 1]", "0 has no logarithm"),
        ("loguniform: [-1, 1]", "-1 has no logarithm"),
        ("randint: [1, 100000000000000000000]", "fit into 64 bits"),
        ("uniform: [1]", "is not two numbers"),
        ("uniform: [a, b]", "is not two numbers"),
        ("choice: []", "is not a list of values"),
        ("choice: 3", "is not a list of values"),
        (f"choice: {list(range(3000))}", "3,000 values are more than the allowed 2,000"),
        ("choice: [1], grid: [2]", "give one kind of values"),
    ],
)
def test_ranges_that_cannot_be_drawn_from_are_refused(tmp_path, values, line):
    path = tmp_path / "given.yaml"
    search = "{name: random, trials: 2}"
    head = f"experiment: quickstart\nsearch: {search}\nset: {{strategy.name: der}}\n"
    path.write_text(f"{head}space: {{strategy.alpha: {{{values}}}}}\n")
    with pytest.raises(UserError) as raised:
        load_sweep(str(path))
    assert line in str(raised.value)
