"""The benchmarks: what they compute from times, and that they run. No time is judged here."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from cl_ovq.benchmarks import operator, run
from cl_ovq.benchmarks.decoding import decode_ovq, decode_softmax
from cl_ovq.benchmarks.operator import Case, crossover, operations, peak_bytes, slopes
from cl_ovq.benchmarks.peers import PEERS, exact_attention, plain_ovq
from cl_ovq.benchmarks.profile import profile_operator
from cl_ovq.benchmarks.run import parse_list, run_operator_benchmark
from cl_ovq.benchmarks.tracking import measure_tracking
from cl_ovq.benchmarks.training import measure_training
from cl_ovq.cli.app import app
from cl_ovq.errors import UserError
from kernels import DictionaryOptions, ovq_attention

SMALL = Case(tokens=96, capacity=16, chunk=32, heads=2, head_dim=8, dtype="float32", device="cpu", direction="forward")


def rows(*points):
    return [{"tokens": tokens, "ovq_seconds": seconds, "speedup": speedup} for tokens, seconds, speedup in points]


def test_slopes_are_growth_per_doubling():
    (slope,) = slopes(rows((1000, 1.0, 1), (4000, 8.0, 1)))
    assert (slope["from"], slope["to"], slope["factor"]) == (1000, 4000, 8.0)
    assert slope["exponent"] == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("speedups", "expected"), [((0.5, 1.5, 2), 2), ((2, 0.5, 2), 4), ((2, 2, 2), 1), ((2, 2, 0.9), None)]
)
def test_crossover_is_where_it_stays_ahead(speedups, expected):
    points = [(tokens, 1.0, speedup) for tokens, speedup in zip((1, 2, 4), speedups, strict=True)]
    assert crossover(rows(*points)) == expected


def test_operations_count_the_slots_in_use():
    """By the sizes that the operator itself reports before each chunk."""
    q = torch.randn(1, 96, 2, 8)
    options, total = DictionaryOptions(capacity=16, chunk_size=32), 0
    for start in (0, 32, 64):
        size = 0
        if start:
            beta = torch.ones(2)
            _, state = ovq_attention(q[:, :start], q[:, :start], q[:, :start], beta, options, output_final_state=True)
            size = int(state.size[0, 0])
        total += 2 * 32 * 8 * (3 * size + 2 * 16) * 2  # read twice, compare once; half the chunk, twice; two heads
    assert operations(SMALL) == total


def test_memory_of_both_is_at_least_that_of_inputs_and_output():
    case = Case(**{**SMALL.__dict__, "tokens": 16_384, "head_dim": 64, "chunk": 256})
    tensor = 16_384 * 2 * 64 * 4
    for method in ("ovq", "sdpa"):
        assert 4 * tensor * 0.9 < peak_bytes(case, method) < 40 * tensor


def test_a_schedule_that_grows_at_once_takes_more_operations():
    found = {growth: operations(replace(SMALL, growth=growth)) for growth in ("plateau", "all", "recycle")}
    assert found["plateau"] < found["all"] == found["recycle"]
    lists = {"capacity": "16", "chunk": "32", "heads": "2", "head_dim": "8", "dtype": "float32"}
    with pytest.raises(UserError, match="--growth: the cost model does not support recycle"):
        run_operator_benchmark(
            {"forward": "64"}, lists | {"growth": "recycle"}, device="model:h200", rounds=1, output=None, as_json=True
        )


def test_profile_shares_add_up_to_one():
    shares = profile_operator(SMALL)
    assert sum(shares.values()) == pytest.approx(1, abs=0.05)
    assert shares["matrix products"] > 0


def test_the_operators_rows_as_json(tmp_path, monkeypatch):
    pytest.importorskip("fla", reason="a peer needs flash-linear-attention: pip install 'cl-ovq[fla]'")
    monkeypatch.setattr(run, "DECODED", (64, 96))
    monkeypatch.setattr(operator, "peak_bytes", lambda case, method: 1)  # ten processes; see the test above
    command = "bench operator --tokens 64 --backward-tokens 128 --capacity 16 --chunk 32 --heads 2 --head-dim 8 --peers"
    result = CliRunner().invoke(
        app, [*command.split(), "--rounds", "1", "--device", "cpu", "--json", "--output", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    keys = {"tokens", "capacity", "chunk", "heads", "head_dim", "dtype", "device", "direction"}
    keys |= {"ovq_seconds", "sdpa_seconds", "speedup", "ovq_peak_bytes", "sdpa_peak_bytes"}
    assert [(row["direction"], row["tokens"]) for row in found["rows"]] == [
        ("forward", 64),
        ("forward_backward", 128),
    ]
    assert all(keys <= set(row) for row in found["rows"])
    assert all(list(row["peers"]) == list(PEERS) for row in found["rows"])
    assert [row["tokens"] for row in found["decoding"]] == [64, 96]
    assert {"large squares, NumPy", "logits of a chunk, one head"} <= found["products"].keys()
    assert found["machine"]["matmul_flops"]["float32"] > 1e8
    assert json.loads((tmp_path / "operator.json").read_text()) == found
    assert (tmp_path / "operator.md").read_text().count("|") > 20
    assert (tmp_path / "operator.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("growth", ["plateau", "all", "linear"])
@pytest.mark.parametrize(("capacity", "chunk"), [(16, 8), (64, 32), (8, 16)])
def test_the_operator_with_old_assignment_is_what_one_writes_in_a_few_lines(growth, capacity, chunk):
    """What `preset=paper` is: an independent derivation, in other operations, with autograd's own gradients."""
    options = DictionaryOptions(capacity=capacity, chunk_size=chunk, growth=growth, assignment="old")
    q, k, v = (torch.randn(2, 200, 3, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    beta = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
    outputs = plain_ovq(q, k, v, beta, options), ovq_attention(q, k, v, beta, options)[0]
    gradients = [torch.autograd.grad(o.square().sum(), (q, k, v)) for o in outputs]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-13)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_both_ways_of_decoding_read_what_attention_over_the_whole_reads():
    tokens = torch.randn(3, 1, 40, 2, 8)
    q, k, v = tokens
    cache = torch.zeros(2, 1, 2, 40, 8)
    cache[:, :, :, :24] = tokens[1:, :, :24].transpose(2, 3)
    torch.testing.assert_close(decode_softmax(tokens[:, :, 24:], cache), exact_attention(q, k, v)[:, 24:])
    options, beta = DictionaryOptions(capacity=8, chunk_size=8), torch.ones(2)
    expected, _ = ovq_attention(q, k, v, beta, options)
    _, state = ovq_attention(*(x[:, :24] for x in (q, k, v)), beta, options, output_final_state=True)
    for implementation in ("auto", "chunked"):
        found = decode_ovq(tokens[:, :, 24:], beta, options, state, implementation)
        torch.testing.assert_close(found, expected[:, 24:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokens", "12,x", "--tokens: 'x' is not a positive integer"),
        ("head_dim", "0", "--head-dim: '0' is not a positive integer"),
        ("heads", ",", "--heads: empty list"),
        ("dtype", "float23", "unknown dtype 'float23': did you mean 'float32'"),
        ("growth", "plato", "unknown growth 'plato': did you mean 'plateau'"),
    ],
)
def test_mistakes(name, text, message):
    with pytest.raises(UserError, match=message):
        parse_list(name, text)


def test_training_loops_are_measured_side_by_side(tiny):
    measured = measure_training(tiny("model.mixer=softmax"), rounds=1)
    assert [row["loop"] for row in measured["rows"]] == [
        "platform",
        "Avalanche's data path",
        "bare PyTorch",
    ]
    assert measured["rows"][2]["ratio"] == 1
    assert 0 <= measured["dictionary_metrics"] < 1
    assert all(row["minimum"] <= row["samples_per_second"] <= row["maximum"] for row in measured["rows"])


def test_tracking_is_measured_side_by_side(tiny):
    measured = measure_tracking(tiny("stream.experiences=1"), rounds=1)
    assert [row["mode"] for row in measured["rows"]] == ["without tracking", "with tracking"]
    without, tracked = measured["rows"]
    assert without["overhead"] == {"wall": 0, "processor": 0}
    for kind in ("wall", "processor"):
        assert tracked["overhead"][kind] == pytest.approx(tracked[kind]["median"] / without[kind]["median"] - 1)
    assert 0 < measured["waited"]["median"] < tracked["wall"]["median"]
    assert measured["waited_share"] == pytest.approx(measured["waited"]["median"] / tracked["wall"]["median"])
