"""Every command that a page shows is taken apart by the shell and the command line, and what it names is checked."""

import re
import subprocess
from pathlib import Path

import pytest
from typer.exceptions import TyperException
from typer.main import get_command

from cl_ovq.cli.app import app
from cl_ovq.cli.listing import KINDS, PARTS
from cl_ovq.config import load_config, load_stream_config
from cl_ovq.errors import UserError
from cl_ovq.imports import import_parts
from cl_ovq.runs.checking import check_config
from cl_ovq.studies import load_study, only
from cl_ovq.studies.published import load_published
from cl_ovq.sweeps import load_sweep

ROOT = Path(__file__).parents[3]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(for .*; do )?([A-Z_]+=\S* )*cl-ovq ")
# The shell says what the arguments are; a command is a function that tells them.
SHELL = r"""cl-ovq() { printf '%s\x1f' "$@" >&3; printf '\x1e' >&3; }
exec 3>&1 >/dev/null
"""


# What stands for something of the reader's, and what says that there is more.
PLACES = {"EXPERIMENT": "quickstart"}
MORE = ("...", "CHANGE")


# What the example in CONTRIBUTING.md takes for granted.
NOISY = """from __future__ import annotations
from dataclasses import dataclass
from cl_ovq.options import option
from cl_ovq.strategies import STRATEGIES
"""


@pytest.fixture
def reader(lab):
    """The working directory of a reader who has the files that the pages name, and has entered their parts."""
    (lab / "docs" / "results").mkdir(parents=True)
    (lab / "my.pth").touch()
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (lab / "noisy.py").write_text(NOISY + block)
    import_parts(["./noisy.py"])
    return lab


def commands(page):
    """The commands of a page, as it has them."""
    text = page.read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", text).splitlines()
    fenced, found = False, []
    for line in lines:
        fenced ^= line.startswith("```")
        code = line.strip().removeprefix("$ ")
        if (fenced or line.startswith("    ")) and COMMAND.match(code):
            found.append(code)
    prose = FENCE.sub("", text)
    prose = "\n".join(
        line for line in prose.splitlines() if not (line.startswith("    ") and COMMAND.match(line.strip()))
    )
    found += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose) if COMMAND.match(code)]
    return found


def written(page, folder):
    """Write the files that a page shows, which say in their first line how they are called."""
    shown = re.findall(
        r"^```\w+\n(# (\w+\.(?:py|yaml))\n.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    for content, name in shown:
        (folder / name).write_text(content)


def arguments(command, folder):
    """The arguments of each call that a command makes, once the shell has expanded it."""
    done = subprocess.run(["bash", "-c", SHELL + command], capture_output=True, text=True, cwd=folder, check=True)
    return [call.split("\x1f")[:-1] for call in done.stdout.split("\x1e")[:-1]]


def parsed(call):
    """A command and its parameters, as the command line takes them."""
    command, rest = get_command(app), list(call)
    name = ""
    while hasattr(command, "commands"):
        name = rest.pop(0)
        command = command.commands[name]
    return name, command.make_context(name, rest).params


def check(call):
    """Check what a call names: files, keys, values and their combinations; nothing is run."""
    if call[-1] == "--help":
        return
    if len(call) == 1:  # which names the command alone
        assert call[0] in get_command(app).commands
        return
    name, given = parsed(call)
    overrides = given.get("overrides") or ()
    if "NAME" in (given.get("file"), given.get("name"), *(given.get("names") or ())):
        return
    match name:
        case "run" | "show" | "features" | "pretrain":
            check_config(load_config(given["config"].replace("NAME", "quickstart"), overrides))
        case "show-stream":
            load_stream_config(given["name"], overrides)
        case "evaluate":
            assert {override.partition("=")[0] for override in overrides} <= KINDS["keys"]().keys()
        case "study":
            rows = only(load_study(given["file"], overrides), given["only"] or ()).rows
            rows[0].config({}, 0, "test")
        case "sweep":
            load_sweep(given["file"], overrides)
        case "published":
            load_published(given["names"] or ())
        case "list":
            assert given["kind"] in (None, *KINDS)
            assert given["name"] in (None, *PARTS.get(given["kind"], ()))
        case "compare":
            assert [run for run in given["runs"] if run.startswith("docs/") and not (ROOT / run).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_right(page, reader, monkeypatch):
    # Every row of every study that is shipped is checked in test_grid_files.py; here, that the command finds its rows.
    monkeypatch.setattr("cl_ovq.studies.files.Row.check", lambda row, point: None)
    monkeypatch.setattr("cl_ovq.studies.files._check_tuning", lambda row, tuning: None)
    written(page, reader)
    wrong = []
    for command in commands(page):
        for call in arguments(command, reader):
            try:
                check([PLACES.get(argument, argument) for argument in call if argument not in MORE])
            except (UserError, TyperException, AssertionError, KeyError) as error:
                wrong.append(f"{command}: {error!r}")
    assert not wrong


def is_short(call):
    """Whether a command takes a second, and needs nothing but what is shipped."""
    words = " ".join(call)
    match call[0]:
        case "list":
            return "--import" not in call and "NAME" not in call and "noisy" not in call
        case "show-stream":
            return "data=" not in words and "glyphs" not in words
        case "compare":
            return "docs/results/" in words and "runs/" not in words
    return False


def test_the_short_ones_run(call, reader):
    found = [words for page in PAGES for command in commands(page) for words in arguments(command, reader)]
    short = [words for words in found if is_short(words)]
    assert {words[0] for words in short} == {"list", "show-stream", "compare"}
    for words in short:
        code, shown, said = call(*(ROOT / word if word.startswith("docs/") else word for word in words))
        assert code == 0, f"{words}: {said}"
        assert shown.strip()
