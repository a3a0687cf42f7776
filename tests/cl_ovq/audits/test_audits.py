"""Audits: each check finds its fault in parts from outside, and a sound run passes all of them."""

import copy
import functools
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forgetting import forgetting
from quick_settings import ANYWHERE, quick
from rich.console import Console

import cl_ovq
from cl_ovq.audits import CHECKS, audit_config
from cl_ovq.audits.answers import MOVED, apart, batch_independence, differ, task_labels
from cl_ovq.audits.choices import choices
from cl_ovq.audits.findings import FAULTY, NOT_APPLICABLE, SOUND
from cl_ovq.audits.frozen import frozen_parts
from cl_ovq.audits.memory import memory
from cl_ovq.audits.repetition import class_order, repeats, resumes
from cl_ovq.audits.samples import disjoint_data, past_samples
from cl_ovq.audits.subject import Subject
from cl_ovq.config import load_config
from cl_ovq.imports import import_parts

PARTS = Path(__file__).with_name("faulty_parts.py")
HIDDEN_BYTES, REPEATED = 4000, 7  # as there
CONFIG = """
stream: {name: split_digits, experiences: 3}
model: {name: network}
strategy: {name: naive, epochs: 2, batch_size: 60}
optimizer: {learning_rate: 1e-2}
tracking: {enabled: false}
threads: 1
"""
# That look at one run as it was, before those that evaluate it again.
ON_ONE_RUN = (past_samples, frozen_parts, memory, batch_independence, task_labels)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with the parts and a configuration; the parts are imported."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "parts.py").write_text(PARTS.read_text())
    (folder / "own.yaml").write_text(CONFIG)
    with forgetting():
        import_parts([str(folder / "parts.py")])
        yield folder


@pytest.fixture(scope="module")
def subject(lab, tmp_path_factory):
    """`subject(*overrides)`: the configuration with overrides, made small; its runs are made once."""
    return functools.cache(
        lambda *overrides: Subject(load_config(lab / "own.yaml", overrides), 2, tmp_path_factory.mktemp("audited"))
    )


@pytest.fixture(scope="module")
def sound(lab):
    """The audit of the configuration as it is."""
    return audit_config(load_config(lab / "own.yaml"), Console(file=io.StringIO()))


def verdicts(subject, checks=ON_ONE_RUN):
    return {check.__name__: check(subject).verdict for check in checks}


def test_a_sound_configuration_passes_every_check(sound):
    assert [finding.check for finding in sound.findings] == [check.__name__ for check in CHECKS]
    assert sound.sound
    open_questions = {finding.check for finding in sound.findings if finding.verdict == NOT_APPLICABLE}
    assert open_questions == {"choices", "frozen_parts"}
    assert sound["resumes"].measured["interruptions"] == 1
    assert sound["memory"].measured["claimed_bytes"] == sound["memory"].measured["held_bytes"] == 0
    with pytest.raises(cl_ovq.UserError, match="did you mean 'memory'"):
        sound["memori"]
    text = sound.to_table().to_markdown()
    assert "2 of 3 experiences" in text
    assert "1 epoch of 2" in text
    told = json.loads(sound.to_json())
    assert told["sound"] is True
    assert told["findings"]["disjoint_data"]["measured"]["test_samples"] == 359


# Each part, the one check that finds its fault, and a number that it measures.
FAULTS = {
    "model.name=crowd": (batch_independence, "predictions_changed", None),
    "model.name=hidden": (batch_independence, "predictions_changed", None),
    "model.name=told": (task_labels, "changed_by_labels", None),
    "strategy.name=oracle": (task_labels, "changed_by_experience", None),
    "strategy.name=smuggler": (past_samples, "past_samples", 5),
    "strategy.name=cheat": (past_samples, "test_samples", 6),
    "model.name=drifting": (frozen_parts, "moved", 3),
    "strategy.name=modest": (memory, "held_bytes", HIDDEN_BYTES),
    "strategy.name=boastful": (memory, "claimed_bytes", 3 * HIDDEN_BYTES),
    "model.name=hoarder": (memory, "held_bytes", None),
}


@pytest.mark.parametrize("part", FAULTS)
def test_one_check_finds_a_fault_and_no_other_does(subject, part):
    check, name, number = FAULTS[part]
    faulty = subject(part)
    found = check(faulty)
    assert found.verdict == FAULTY, found
    assert found.measured[name] == number if number is not None else found.measured[name] > 0
    assert [name for name, verdict in verdicts(faulty).items() if verdict == FAULTY] == [check.__name__]


def test_rounding_is_no_other_answer_and_a_constant_hides_none():
    torch.manual_seed(0)
    known = torch.randn(50, 6) * torch.tensor([1.0, 1, 1, 1, 1, 1e-9]) - torch.tensor([0.0, 0, 0, 0, 1e4, 1e4])
    rounded = known * (1 + 1e-6 * torch.randn(50, 6))
    assert float(apart(known, rounded).max()) < MOVED
    moved = known + torch.tensor([0.01, 0, 0, 0, 0, 0])
    assert float(apart(known, moved).min()) > MOVED
    assert float(apart(known, known.masked_fill(known < -1e3, -torch.inf)).min()) > MOVED
    assert not differ(known, known.clone()).any()
    assert differ(known, rounded).all()


def test_a_frozen_weight_that_moves_is_found(subject):
    found = frozen_parts(subject("strategy.name=shrink", "model.train_encoder=never"))
    assert found.verdict == FAULTY
    assert found.measured["frozen_weights"] == 4  # of a linear layer and a batch norm
    assert found.measured["frozen_statistics"] == 3
    assert found.measured["moved"] == 3  # the bias of a batch norm is zero, and stays so
    still = frozen_parts(subject("model.train_encoder=never"))
    assert (still.verdict, still.measured["moved"]) == (SOUND, 0)


def test_what_a_buffer_is_said_to_hold_is_what_is_held_and_seen(subject):
    replay = subject("strategy.name=replay", "strategy.buffer_size=20")
    seen, held = past_samples(replay), memory(replay)
    assert seen.verdict == held.verdict == SOUND
    assert seen.measured["past_samples"] == seen.measured["kept_samples"] == 20
    assert seen.measured["kept_bytes"] == held.measured["held_bytes"] == 20 * 64  # digits are 8 x 8 bytes
    assert held.measured["held_samples"] == 20
    honest = memory(subject("strategy.name=honest"))
    assert (honest.verdict, honest.measured["held_bytes"]) == (SOUND, HIDDEN_BYTES)


@pytest.mark.parametrize("strategy", ANYWHERE)
def test_every_strategy_of_ours_sees_what_it_says_and_holds_what_it_claims(subject, strategy):
    own = subject(*quick(strategy))
    for check in (past_samples, memory):
        assert check(own).verdict != FAULTY, check(own)


OVQ = ("model.name=patch_transformer", "model.width=16", "model.depth=1", "model.patch_size=4")
OVQ += ("dictionary.capacity=24", "dictionary.chunk_size=4")


# A teacher that is a copy holds no tokens of its pupil's last write; sums by task count as dictionaries do.
@pytest.mark.parametrize("overrides", [quick("lwf"), ("dictionary.sums=true",)], ids=["teacher", "sums"])
def test_dictionaries_are_claimed_to_the_byte(subject, overrides):
    found = memory(subject(*OVQ, *overrides))
    assert found.verdict == SOUND, found
    assert found.measured["held_bytes"] > 0


def test_augmented_batches_are_recognised_in_a_run_without_augmentation(subject):
    found = past_samples(subject("strategy.name=smuggler", "training.augmentation=[crop]"))
    assert (found.verdict, found.measured["past_samples"]) == (FAULTY, 5)


def test_repeated_samples_are_found_by_content(subject):
    found = disjoint_data(subject("stream.name=leaky"))
    assert (found.verdict, found.measured["test_in_training"]) == (FAULTY, REPEATED)
    assert found.measured["validation_in_training"] == 0
    assert found.reason == f"{REPEATED} test samples are in training data"


@pytest.mark.parametrize(
    ("overrides", "verdict"),
    [
        (("stream.name=ordered",), FAULTY),
        (("stream.shuffle_classes=false",), SOUND),
        (("stream.class_order=[9,8,7,6,5,4,3,2,1,0]",), SOUND),
        (("stream.name=permuted_digits",), NOT_APPLICABLE),
        (("stream.name=episodes_digits", "stream.tasks=2"), SOUND),  # classes are numbered as they are drawn
        ((), SOUND),
    ],
)
def test_one_order_of_classes_for_all_seeds_is_found(subject, overrides, verdict):
    assert class_order(subject(*overrides)).verdict == verdict


def test_what_no_seed_decides_is_found(subject):
    found = repeats(subject("strategy.name=unseeded"))
    assert found.verdict == FAULTY
    assert found.measured["tensors_that_differ"] > 0


def test_state_that_no_checkpoint_keeps_is_found(subject):
    forgetful = subject("strategy.name=forgetful")
    assert repeats(forgetful).verdict == SOUND
    found = resumes(forgetful)
    assert (found.verdict, found.measured["interruptions"]) == (FAULTY, 1)
    assert resumes(subject("checkpoint.enabled=false")).verdict == NOT_APPLICABLE


@pytest.fixture(scope="module")
def finished(lab, subject):
    """The result of a run of the configuration, in a folder of its own."""
    config = copy.deepcopy(subject().small)
    config.output_dir = str(lab / "finished")
    return cl_ovq.run(config, quiet=True)


@pytest.fixture
def audited(subject, finished, tmp_path):
    """`audited(files, name)`: what is said of a run's choices, among runs of other splits and seeds by folder."""

    def audited(files, name):
        for folder, (split, seed) in files.items():
            (tmp_path / folder).mkdir(parents=True)
            config = {**finished.config, "seed": seed, "evaluation": {**finished.config["evaluation"], "split": split}}
            replace(finished, config=config).write(tmp_path / folder)
        one = Subject(subject().asked, 2, tmp_path / "unused", tmp_path / name)
        return choices(one)

    return audited


TEST = {"s/test/seed_0": ("test", 0), "s/test/seed_1": ("test", 1)}


@pytest.mark.parametrize(
    ("trials", "verdict", "reason"),
    [
        (
            {"s/trials/0000/seed_100": ("validation", 100)},
            SOUND,
            "1 runs that chose in this sweep judged validation data",
        ),
        ({"s/trials/0000/seed_100": ("test", 100)}, FAULTY, "1 of 1 runs that chose judged the test split"),
        ({"s/trials/0000/seed_1": ("validation", 1)}, FAULTY, "seeds [1] both chose and are reported"),
    ],
)
def test_a_sweep_that_chose_on_test_data_is_found(audited, trials, verdict, reason):
    found = audited({**TEST, **trials}, "s/test/seed_0")
    assert found.verdict == verdict
    assert reason in found.reason


def test_a_study_that_chose_on_test_data_is_found(audited, finished, tmp_path):
    row = {f"row/validation-seed-{seed}-0123456789ab": ("validation", seed) for seed in (100, 101)}
    row["row/test-seed-0-0123456789ab"] = ("test", 0)
    assert audited(row, "row/test-seed-0-0123456789ab").verdict == SOUND
    other = {**finished.config, "optimizer": {**finished.config["optimizer"], "learning_rate": 0.5}}
    (tmp_path / "row/test-seed-0-ba9876543210").mkdir()
    replace(finished, config=other).write(tmp_path / "row/test-seed-0-ba9876543210")
    found = audited({}, "row/test-seed-0-0123456789ab")
    assert (found.verdict, found.measured["configurations_on_test"]) == (FAULTY, 2)


def test_a_run_alone_says_nothing_of_choices(audited):
    assert audited({"alone": ("test", 0)}, "alone").verdict == NOT_APPLICABLE


def test_the_command_line(lab, call, finished, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, out, err = call("audit", finished.output_dir, "strategy.name=modest", "--json")
    assert code == 1
    assert json.loads(out)["findings"]["memory"]["verdict"] == "faulty"
    assert "faulty memory" in err
    assert list(tmp_path.iterdir()) == []  # every run is gone
    code, out, _ = call("audit", finished.output_dir)
    assert code == 0
    assert "disjoint data" in out
    assert (lab / "imported").read_text() == "x"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("quickstrat",), "did you mean 'quickstart'?"),
        (("quickstart", "model.mixer=sofmax"), "did you mean 'softmax'?"),
        ((".",), "contains no results (results.json)"),
    ],
)
def test_mistakes_are_one_line(call, arguments, line):
    code, out, err = call("audit", *arguments)
    assert (code, out) == (2, "")
    assert line in err
    assert len(err.splitlines()) == 1


def test_a_run_of_others_imports_nothing(lab, call, finished, tmp_path):
    mine = tmp_path / "theirs"
    mine.mkdir()
    names = {str(tmp_path / "parts.py"): ["0" * 64]}
    config = {**finished.config, "imports": list(names), "model": {**finished.config["model"], "name": "their_model"}}
    (tmp_path / "parts.py").write_text(PARTS.read_text())
    replace(finished, config=config).write(mine)
    code, _, err = call("audit", str(mine))
    assert code == 2
    assert "--import" in err
    assert not (tmp_path / "imported").exists()


def test_from_python_with_a_model_of_ones_own(lab):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(64, 10)

        def forward(self, x):
            return self.head(x.flatten(1))

    own = Own()
    before = own.head.weight.detach().clone()
    rest = {"stream": {"name": "split_digits"}, "strategy": {"name": "naive", "batch_size": 60}}
    with pytest.raises(cl_ovq.UserError, match="experiences: 0 is too small"):
        cl_ovq.audit(rest, model=own, experiences=0, quiet=True)
    found = cl_ovq.audit({**rest, "tracking": {"enabled": False}}, model=own, quiet=True)
    assert found.sound
    assert torch.equal(own.head.weight, before)
    assert isinstance(found["memory"].measured["claimed_bytes"], int)
