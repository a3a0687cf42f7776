"""The cost model: what it must say whatever its numbers are, and its place in the command line."""

import json

import pytest
from typer.testing import CliRunner

from cl_ovq.benchmarks.cost import MACHINES, cost, decode_seconds, flash_seconds
from cl_ovq.benchmarks.operator import Case, operations
from cl_ovq.benchmarks.run import run_operator_benchmark
from cl_ovq.cli.app import app
from cl_ovq.errors import UserError

SHAPE = {"capacity": 1024, "chunk": 128, "heads": 16, "head_dim": 64}
H200 = MACHINES["h200"]


def test_its_operations_are_those_that_the_benchmark_counts():
    case = Case(tokens=8192, dtype="bfloat16", device="cpu", direction="forward", **SHAPE)
    assert cost(H200, tokens=8192, **SHAPE).operations == pytest.approx(operations(case))


def test_it_is_linear_in_tokens_where_flash_attention_is_quadratic():
    shape = {"heads": 16, "head_dim": 64}
    low, high = (cost(H200, tokens=t, **SHAPE).seconds for t in (65_536, 131_072))
    assert 1.9 < high / low < 2.1
    low, high = (flash_seconds(H200, tokens=t, backward=False, **shape) for t in (65_536, 131_072))
    assert high / low == pytest.approx(4)


def test_no_call_is_faster_than_the_machine():
    for backward in (False, True):
        found = cost(H200, tokens=16_384, rows=16, backward=backward, **SHAPE)
        assert found.seconds > found.operations / H200.matmul
        assert found.seconds > found.traffic / H200.memory
    assert decode_seconds(H200, capacity=1024, heads=16, head_dim=64) > 16 * 1024 * 8 * 64 / H200.memory


def test_a_modelled_device_is_said_to_be_modelled(tmp_path):
    arguments = ["bench", "operator", "--device", "model:h200", "--tokens", "4096", "--backward-tokens", "4096"]
    run = CliRunner().invoke(app, [*arguments, "--json", "--output", str(tmp_path)])
    rows = json.loads(run.stdout)
    assert [row["direction"] for row in rows] == ["forward", "forward_backward"]
    assert rows[1]["backward_seconds"] > 0 == rows[0]["backward_seconds"]
    assert "modelled, not measured" in (tmp_path / "modelled_h200.md").read_text()
    with pytest.raises(UserError, match="unknown modelled device 'h201': did you mean 'h200'"):
        run_operator_benchmark({}, {}, device="model:h201", rounds=1, output=None, as_json=False)
