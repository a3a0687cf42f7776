"""Configurations of somebody else ask neither the environment nor other files for what they are not to have."""

import io
import json
import os

import pytest
from rich.console import Console

from cl_ovq.config import from_stored, load_config, to_dict
from cl_ovq.errors import UserError
from cl_ovq.runs.run import run_experiment

SECRET = "s3cret-of-the-environment"
ASKS = [
    "${oc.env:CL_OVQ_SECRET}",
    "a ${oc.env:CL_OVQ_SECRET} b",
    "${oc.env:CL_OVQ_NOT_THERE,x}",
    "${oc.decode:${oc.env:CL_OVQ_SECRET}}",
    "${oc.${seed}:CL_OVQ_SECRET}",
    "${oc.decode:'\\${oc.env:CL_OVQ_SECRET}'}",
    "${oc.create:{a:1}}",
    "${oc.select:seed,${oc.env:CL_OVQ_SECRET}}",
    "${ oc.env:CL_OVQ_SECRET}",
    "${model.${seed}}",
    "${.enabled}",
]


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("CL_OVQ_SECRET", SECRET)


@pytest.mark.parametrize("text", ASKS)
@pytest.mark.parametrize("key", ["tracking.run_name", "tracking.tags.a", "output_dir", "tracking.uri", "strategy.name"])
def test_a_value_does_not_read_the_environment(call, tiny_path, secret, tmp_path, key, text):
    path = tmp_path / "received.yaml"
    section, _, name = key.partition(".")
    value = json.dumps(text)
    nested = "".join(f"{{{part}: " for part in name.split(".")) + value + "}" * len(name.split(".")) if name else value
    path.write_text(f"include: {tiny_path}\n{section}: {nested}\n")
    for arguments in ((path,), (tiny_path, f"{key}={text}")):
        code, out, error = call("run", *arguments)
        assert (code, out, len(error.splitlines())) == (2, "", 1)
        assert error.startswith(f"error: {key}: '")
        assert "--allow-env" in error
        assert SECRET not in error
    assert [file.name for file in tmp_path.iterdir()] == ["received.yaml"]


def test_what_decides_a_result_never_comes_from_it(tiny_path, secret):
    for overrides in (["model.mixer=${oc.env:X}"], ["threads=${oc.env:X}", "model.width=${threads}"]):
        with pytest.raises(UserError, match="affects the result, so it cannot come from the environment"):
            load_config(tiny_path, overrides, allow_env=True)


def test_allowed_it_is_stored_unread_and_a_run_goes_on(tiny_path, secret, tmp_path, monkeypatch):
    monkeypatch.setenv("CL_OVQ_STORE", f"sqlite:///{tmp_path}/{SECRET}.db")
    overrides = [
        "tracking.enabled=true",
        "tracking.log_model=true",
        "tracking.uri=${oc.env:CL_OVQ_STORE}",
        "tracking.run_name=of ${oc.env:CL_OVQ_SECRET}",
        "tracking.tags={who: '${oc.env:CL_OVQ_SECRET}', plain: x}",
        f"output_dir={tmp_path / 'out'}",
    ]
    config = load_config(tiny_path, overrides, allow_env=True)
    assert config.tracking.uri == os.environ["CL_OVQ_STORE"]
    stored = to_dict(config)["tracking"]
    assert stored["uri"] == "${oc.env:CL_OVQ_STORE}"
    assert stored["tags"] == {"who": "${oc.env:CL_OVQ_SECRET}", "plain": "x"}
    assert stored["run_name"] == "of ${oc.env:CL_OVQ_SECRET}"
    result = run_experiment(config, Console(file=io.StringIO()))
    assert result.run_id
    assert result.run_name == stored["run_name"]
    assert (tmp_path / f"{SECRET}.db").exists()
    for file in (tmp_path / "out").rglob("*"):
        assert SECRET.encode() not in file.read_bytes(), file
    assert SECRET.encode() not in (tmp_path / f"{SECRET}.db").read_bytes().replace(f"{SECRET}.db".encode(), b"")
    (tmp_path / "out" / "results.json").unlink()
    again = run_experiment(load_config(tiny_path, overrides, allow_env=True), Console(file=io.StringIO()), resume=True)
    assert (again.run_id, again.matrix) == (result.run_id, result.matrix)
    assert from_stored(again.config).tracking.uri is None
    assert from_stored(again.config).tracking.tags == {"plain": "x"}


def test_a_value_that_was_changed_since_is_stored_as_it_is(tiny_path, secret):
    config = load_config(tiny_path, ["output_dir=${oc.env:CL_OVQ_SECRET}"], allow_env=True)
    assert (config.output_dir, to_dict(config)["output_dir"]) == (SECRET, "${oc.env:CL_OVQ_SECRET}")
    config.output_dir = "other"
    assert to_dict(config)["output_dir"] == "other"


def test_no_message_shows_what_was_read(call, tiny_path, secret):
    for key in ("device", "threads", "tracking.uri", "output_dir"):
        value = "/dev/null/${oc.env:CL_OVQ_SECRET}" if key == "output_dir" else "${oc.env:CL_OVQ_SECRET}"
        code, _, error = call("run", tiny_path, f"{key}={value}", "tracking.enabled=true", "--allow-env")
        assert (code, len(error.splitlines()), SECRET in error) == (2, 1, False), error


CONTENTS = {
    "shadow": f"root:$6${SECRET}:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n",
    "credentials": f"[default]\naws_secret_access_key = {SECRET}\n",
    "key.pem": f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n",
    "token.json": json.dumps({SECRET: SECRET}),
    "netrc": f"machine h login me password {SECRET}\n",
    "pairs.yaml": f"{SECRET}: {SECRET}\n",
    "twice.yaml": f"{SECRET}: 1\n{SECRET}: 2\n",
    "alias.yaml": f"a: *{SECRET}\n",
    "tag.yaml": f"a: !{SECRET} x\n",
    "tab": f"{SECRET}:\n\t{SECRET}\n",
    "list": f"- {SECRET}\n",
    "binary": b"\xff\xfe" + SECRET.encode(),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_of_a_file_that_is_no_configuration_nothing_is_shown(call, tmp_path, name):
    content = CONTENTS[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    space = "space: {optimizer.learning_rate: {choice: [1e-3]}}\nsearch: {name: grid}\n"
    received = {
        "run": f"include: {name}\n",
        "sweep": f"experiment: {name}\n{space}",
        "study": f"grids: [{{rows: {{a: {{experiment: {name}}}}}}}]\n",
    }
    for command, text in received.items():
        (tmp_path / "received.yaml").write_text(text)
        code, out, error = call(command, "received.yaml")
        assert (code, out, len(error.splitlines())) == (2, "", 1), error
        assert SECRET not in error
        assert name in error


@pytest.mark.parametrize("name", ["/dev/zero", "fifo", ".", "/proc/self/mem", "/proc/kmsg"])
def test_what_is_no_file_is_not_read(call, tmp_path, name):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "received.yaml").write_text(f"include: {name}\n")
    code, _, error = call("run", "received.yaml")
    assert (code, len(error.splitlines())) == (2, 1), error


def test_references_do_not_expand_without_end(call, tiny_path, tmp_path):
    """Ten lines of ten references each stand for 10^10 letters; and a chain of them may be as long as Python goes."""
    ten = {"a0": "x" * 10} | {f"a{n + 1}": f"${{tracking.tags.a{n}}}" * 10 for n in range(9)}
    listed = {"a": ["x" * 10, *(f"${{tracking.tags.a[{n}]}}" * 10 for n in range(9))]}
    sections = {"a0": {"x": "x"}} | {
        f"a{n + 1}": {str(m): f"${{tracking.tags.a{n}}}" for m in range(10)} for n in range(9)
    }
    wide = {"a0": "x" * 100_000} | {f"a{n + 1}": "${tracking.tags.a0}" for n in range(400)}
    chain = {f"a{n + 1}": f"${{tracking.tags.a{n}}}" for n in reversed(range(550))} | {"a0": "x"}
    for number, tags in enumerate((ten, listed, sections, wide, chain)):
        path = tmp_path / f"{number}.yaml"
        path.write_text(f"include: {tiny_path}\n" + json.dumps({"tracking": {"tags": tags}})[1:-1])
        code, out, error = call("show", path)
        assert (code, out, len(error.splitlines())) == (2, "", 1)
        assert error.startswith(
            "error: references between keys are nested too deeply"
            if tags is chain
            else "error: after resolving references, the values have more than 4194304 characters"
        )
