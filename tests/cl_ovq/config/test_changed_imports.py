"""A file of parts that changes between a run and what goes on from it: told in a line, and stored."""

import hashlib
import json

import pytest
from forked import ForkedCommand
from rich.console import Console

import cl_ovq
from cl_ovq.imports import changed, digests, with_digests
from cl_ovq.studies import load_study, run_study

CONFIG = """
imports: [./own_parts.py]
stream: {name: split_digits, experiences: 2}
model: {name: mlp, width: 8, depth: 1}
strategy: {name: naive, batch_size: 500}
tracking: {enabled: false}
figures: false
"""
FIRST, SECOND = "x = 1\n", "x = 2  # a mistake is mended\n"


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def own(lab):
    """The folder with the file and a configuration that names it."""
    (lab / "own_parts.py").write_text(SECOND)
    (lab / "changing.yaml").write_text(CONFIG)
    return lab


@pytest.fixture
def changing(own):
    """The same with a run that is finished, whose file has changed since."""
    (own / "own_parts.py").write_text(FIRST)
    forked("run", "changing.yaml", "output_dir=out")
    (own / "own_parts.py").write_text(SECOND)
    return own


def forked(*arguments):
    done = ForkedCommand(*arguments).wait()
    assert done.returncode == 0, done.stderr
    return done


def told(done):
    return [line for line in done.stderr.splitlines() if line.startswith("imports:")]


def stored(folder):
    return json.loads((folder / "results.json").read_text())["provenance"]


def test_a_finished_run_and_its_evaluation(changing):
    file = str(changing / "own_parts.py")
    assert stored(changing / "out")["imports"] == {file: [sha256(FIRST)]}
    again = ("run", "changing.yaml", "output_dir=out", "--resume", "--json")
    assert told(forked(*again)) == [f"imports: {file} has changed since this run began"]
    evaluated = forked("evaluate", "out", "--json", "--import", "own_parts.py")
    assert told(evaluated) == [f"imports: {file} has changed since the run of out/checkpoint.bin began"]
    (changing / "own_parts.py").write_text(FIRST)
    assert told(forked(*again)) == []


def test_a_run_that_goes_on_says_what_it_was_made_with(changing):
    (changing / "out" / "results.json").unlink()
    file, again = str(changing / "own_parts.py"), ("run", "changing.yaml", "output_dir=out", "--resume")
    assert told(forked(*again)) == [f"imports: {file} has changed since this run began"]
    assert stored(changing / "out")["imports"] == {file: [sha256(FIRST), sha256(SECOND)]}


def test_a_study_says_it_once(own, capsys):
    study = "title: Own\nseeds: 2\ngrids:\n- stream: {Digits: {experiment: changing.yaml}}\n"
    (own / "study.yaml").write_text(study)
    cl_ovq.import_parts("own_parts.py")
    loaded, console = load_study("study.yaml"), Console(stderr=True, width=1000)
    run_study(loaded, own / "study", console)
    assert "imports:" not in capsys.readouterr().err
    for path in own.glob("study/*/*/results.json"):
        path.write_text(path.read_text().replace(sha256(SECOND), sha256(FIRST)))
    run_study(loaded, own / "study", console)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("imports:")]
    assert line.endswith(f"own_parts.py has changed since runs in {own / 'study'} began")


def test_a_file_that_was_moved_is_known_by_its_name(own):
    cl_ovq.import_parts("own_parts.py")
    file = str(own / "own_parts.py")
    assert digests() == {file: sha256(SECOND)}
    assert changed({"/elsewhere/own_parts.py": [sha256(FIRST)]}) == [file]
    assert changed({"/elsewhere/own_parts.py": [sha256(SECOND)], "/elsewhere/other.py": ["0"]}) == []
    assert with_digests({file: [sha256(SECOND)]}) == {file: [sha256(SECOND)]}


MIXER = """from cl_ovq.mixers import MIXERS, Mixer


class Same(Mixer):
    def forward(self, x, **options):
        return x, None

    def state_bytes(self, tokens):
        return 0


@MIXERS.enter("same", "nothing")
def build_same(options):
    return Same()
"""


def test_what_was_not_imported_is_named_where_a_run_that_needs_it_is_read(own):
    (own / "mixer.py").write_text(MIXER)
    (own / "plain.yaml").write_text(
        CONFIG.replace("imports: [./own_parts.py]\n", "").replace("mlp", "patch_transformer")
    )
    run = ("run", "plain.yaml", "model.mixer=same", "model.patch_size=4", "output_dir=out")
    forked(*run, "--import", "mixer.py")
    for command in ("evaluate", "out"), ("weights", "out", "--output", "x.pth"):
        refused = ForkedCommand(*command).wait()
        assert refused.returncode == 2
        assert "unknown mixer 'same'" in refused.stderr
        hint = f"it was made with --import {own / 'mixer.py'}"
        assert hint in " ".join(refused.stderr.split())
