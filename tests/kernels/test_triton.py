"""The Triton kernels: on a GPU if there is one, else in Triton's interpreter, at sizes that it can take.

Tests over all implementations run these kernels too; here is what only they have: tiles, dtypes, shared reads, batch
writes, operators of their own, and what they refuse.
"""

import os
import subprocess
import sys
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_helpers import (
    ON_GPU,
    Inputs,
    all_inputs,
    all_options,
    assert_any_case_is_as_chunked,
    assert_as_chunked,
    assert_states_close,
    empty_state,
    examples,
    outputs_and_gradients,
    random_inputs,
    relative_rms,
    served,
    tolerance_of,
)
from test_operator import Model

from kernels import ASSIGNMENT, LEARNING_RATES, READ_OUTS, DictionaryOptions, DictionaryState, ovq_attention, update
from kernels.attention import choose

CLOSE = tolerance_of("triton")
DEVICE = "cuda" if ON_GPU else "cpu"


# Every example is compiled for itself on a GPU, so there the examples are shared out among many tests.
PARTS = [
    {"read_out": read_out, "learning_rate": learning_rate, "assignment": assignment}
    for read_out, learning_rate, assignment in product(READ_OUTS, LEARNING_RATES, ASSIGNMENT)
]
PARTS = PARTS if ON_GPU else [{}]


@pytest.mark.parametrize("fixed", PARTS, ids=str)
@given(data=st.data())
@examples(11 if ON_GPU else 6, shrink=False)
def test_outputs_states_and_gradients(fixed, data):
    inputs, options = data.draw(all_inputs(torch.float32)), data.draw(all_options(**fixed))
    assert_any_case_is_as_chunked("triton", inputs, options, data.draw(st.integers(0, 8)), data.draw(st.booleans()))


@pytest.mark.slow
@given(inputs=all_inputs(torch.float32), options=all_options(), before=st.integers(0, 8), shared=st.booleans())
@examples(100, shrink=False)
def test_outputs_states_and_gradients_at_length(inputs, options, before, shared):
    assert_any_case_is_as_chunked("triton", inputs, options, before, shared)


SIZES = [  # T, H, group, D, N, L: each D, each L, tiles that do not fit, several tiles a chunk
    pytest.param(70, 1, 1, 32, 33, 32),
    pytest.param(40, 1, 2, 100, 20, 16),
    pytest.param(150, 1, 1, 64, 70, 128, marks=() if ON_GPU else pytest.mark.slow),
    pytest.param(140, 1, 2, 128, 40, 64, marks=() if ON_GPU else pytest.mark.slow),
    pytest.param(300, 1, 1, 32, 64, 256, marks=() if ON_GPU else pytest.mark.slow),
]
if ON_GPU:
    SIZES += [pytest.param(5000, 4, 2, 64, 1024, 128), pytest.param(9001, 2, 1, 128, 8192, 64)]


@pytest.mark.parametrize(("t", "h", "group", "d", "n", "length"), SIZES)
def test_native_sizes(t, h, group, d, n, length):
    """Clusters that no rounding confuses, so that both paths make the same dictionary of many chunks."""
    g = torch.Generator().manual_seed(0)
    inputs = random_inputs(t=t, h=h, dk=d, dv=d, group=group, dtype=torch.float32)
    centres = torch.randn(2 * n, d, generator=g)
    inputs.k[:] = centres[torch.randint(2 * n, inputs.k.shape[:3], generator=g)] + 0.01 * inputs.k
    options = DictionaryOptions(capacity=n, chunk_size=length)
    assert_as_chunked("triton", inputs, options, empty_state(inputs, options))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize("choices", [{}, {"read_out": "gmr", "learning_rate": "floored", "query_norm": False}], ids=str)
def test_narrow_inputs(dtype, tolerance, choices):
    """Within their rounding of the specification in fp64; statistics keep the precision of fp32."""
    options = DictionaryOptions(capacity=16, chunk_size=16, **choices)
    inputs = random_inputs(t=44, h=1, dk=16, dv=16, dtype=dtype)
    o, final = inputs.run(options, "triton")
    exact = inputs.to(torch.float64)
    expected, state = exact.run(options, "reference")
    assert o.dtype == dtype
    assert final.keys.dtype == torch.float32
    assert relative_rms(o, expected) < tolerance
    assert torch.equal(final.counts, state.counts)
    assert relative_rms(final.keys, state.keys) < 1e-5
    assert relative_rms(final.values, state.values) < 1e-6
    grads, expected_grads = (
        torch.autograd.grad(x.with_leaves(leaves).run(options, name)[0].square().sum(), leaves)
        for x, name, leaves in ((inputs, "triton", inputs.leaves()), (exact, "chunked", exact.leaves()))
    )
    for actual, wanted in zip(grads, expected_grads, strict=True):
        assert relative_rms(actual, wanted) < 2 * tolerance


def test_near_ties_by_their_effect():
    """Keys so close that rounding may give a token to either of two slots: outputs hardly care which."""
    inputs = random_inputs(t=40, h=1, dk=8, dv=8)
    pairs = torch.randn(6, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64).repeat_interleave(2, 0)
    pairs[1::2] += 1e-4 * torch.randn(6, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    which = torch.randint(12, (40,), generator=torch.Generator().manual_seed(5))
    inputs.k[0, :, 0] = pairs[which]
    inputs.v[0, :, 0] = pairs[which] * 2
    narrow = inputs.to(torch.bfloat16)
    options = DictionaryOptions(capacity=12, chunk_size=8)
    o, final = narrow.run(options, "triton")
    expected, _ = narrow.to(torch.float64).run(options, "reference")
    assert relative_rms(o, expected) < 1e-2
    assert int(final.counts.sum()) == int(final.tokens)


@pytest.mark.parametrize("read_out", ["raw", "gmr"])
def test_rows_that_share_a_dictionary(read_out):
    """Tiles run over the tokens of several rows, and no row sees another's."""
    options = DictionaryOptions(capacity=20, chunk_size=8, read_out=read_out)
    with torch.no_grad():
        history = random_inputs(t=16, h=1, dtype=torch.float32, seed=4)
        _, state = history.run(replace(options, growth="all"), "chunked")
    inputs = random_inputs(b=9, t=5, h=1, group=2, biased=True, masked=0.2, dtype=torch.float32)
    assert_as_chunked("triton", inputs, options, state)


def test_a_strided_input_is_read_where_it_lies():
    """Heads taken out of one projection, and a state that slices another."""
    options = DictionaryOptions(capacity=6, chunk_size=4)
    together = torch.randn(2, 10, 3, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = (together[:, :, i : i + 1] for i in range(3))
    inputs = Inputs(q, k, v, torch.ones(1), torch.ones(2, 10, dtype=torch.bool))
    _, state = inputs.run(options, "triton")
    assert not state.keys.is_contiguous()
    assert_as_chunked("triton", inputs, options, state.detach())


@pytest.mark.parametrize("fixed", PARTS, ids=str)
@given(data=st.data())
@examples(11 if ON_GPU else 10, shrink=False)
def test_update(fixed, data):
    """Slots and states of two writes, and the state that was given left alone."""
    inputs, shared = data.draw(all_inputs(torch.float32)), data.draw(st.booleans())
    options = served(data.draw(all_options(**fixed)), "triton")
    expected = state = empty_state(inputs, options, 1 if shared else None)
    for i in range(2):
        before = state.clone()
        k = inputs.k * (i + 1) + i  # other keys than before, whose similarity to their own slots would tie
        written, slots = update(
            state.to(DEVICE), k.to(DEVICE), inputs.v.to(DEVICE), options, inputs.mask.to(DEVICE), "triton"
        )
        assert_states_close(state, before, rtol=0, atol=0)
        expected, expected_slots = update(expected, k, inputs.v, options, inputs.mask, "chunked")
        assert torch.equal(slots.cpu(), expected_slots)
        state = written.to("cpu")
        assert_states_close(state, expected, **CLOSE)


def test_update_in_many_tiles():
    """More tokens than a tile holds, seeds and members in all of them."""
    options = DictionaryOptions(capacity=90, growth="linear", growth_rate=0.3)
    inputs = random_inputs(b=7, t=31, h=1, dtype=torch.float32)
    state = empty_state(inputs, options, 1)
    expected, expected_slots = update(state, inputs.k, inputs.v, options, implementation="chunked")
    written, slots = update(
        state.to(DEVICE), inputs.k.to(DEVICE), inputs.v.to(DEVICE), options, implementation="triton"
    )
    assert torch.equal(slots.cpu(), expected_slots)
    assert_states_close(written.to("cpu"), expected, **CLOSE)


def test_the_table_of_versions_comes_in_waves(monkeypatch):
    """A sequence so long, or slots so many, that the table is made piece by piece."""
    from kernels.triton.calls import Call

    monkeypatch.setattr(Call, "wave", 2)
    inputs = random_inputs(t=23, h=1, dtype=torch.float32)
    options = DictionaryOptions(capacity=5, chunk_size=4)
    assert_as_chunked("triton", inputs, options, empty_state(inputs, options))


def test_the_same_bits_again():
    """No sum depends on which program comes first."""
    inputs = random_inputs(b=2, t=19, h=1, group=2, dtype=torch.float32)
    options = DictionaryOptions(capacity=5, chunk_size=4)
    results = [outputs_and_gradients(inputs, options, empty_state(inputs, options), "triton") for _ in range(2)]
    torch.testing.assert_close(results[0][2], results[1][2], rtol=0, atol=0)


def test_as_an_operator():
    """With autograd, fake tensors and compiled graphs."""
    from kernels.triton import operator  # noqa: F401  (registers it)

    options = DictionaryOptions(capacity=6, chunk_size=5)
    state = DictionaryState.empty((1, 1, 6, 4, 3), device=DEVICE)
    inputs = random_inputs(b=2, t=7, h=1, dtype=torch.float32)
    tensors = [x.detach().to(DEVICE).requires_grad_() for x in inputs.leaves()]
    arguments = (*tensors, None, None, *state.state_dict().values(), options.text, 1, True)
    torch.library.opcheck(torch.ops.ovq.attention_triton.default, arguments)


def test_compiles_without_a_graph_break(monkeypatch):
    import test_operator

    monkeypatch.setattr(
        test_operator, "ovq_attention", lambda *args, **kw: ovq_attention(*args, **kw, implementation="triton")
    )
    torch.manual_seed(0)
    model = Model(DictionaryOptions(capacity=6, chunk_size=5), kv_heads=1).to(DEVICE)
    x = torch.randn(1, 7, 8, device=DEVICE)
    results = []
    for run in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        y, state = run(x)
        (y.sum() + state.keys.sum()).backward()
        results.append([y, *state.state_dict().values(), *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("choices", "dtype", "dk", "message"),
    [
        ({"seeds": "farthest"}, torch.float32, 4, "seeds 'farthest'.*served: spread, random; 'chunked'"),
        ({}, torch.float64, 4, "inputs are torch.float64; served: float32"),
        ({}, torch.float32, 129, "head sizes are 129 and 3; served: 1 to 128"),
    ],
)
def test_what_kernels_do_not_serve(choices, dtype, dk, message):
    options = DictionaryOptions(capacity=4, chunk_size=4, **choices)
    inputs = random_inputs(dk=dk, dtype=dtype)
    with pytest.raises(ValueError, match=message):
        inputs.run(options, "triton")
    if "inputs" not in message:
        with pytest.raises(ValueError, match=message):
            update(
                empty_state(inputs, options).to(DEVICE),
                inputs.k.to(DEVICE),
                inputs.v.to(DEVICE),
                options,
                implementation="triton",
            )


def test_auto_takes_what_serves():
    """On a GPU kernels wherever they serve a call, else the PyTorch path; on a CPU never."""
    options = DictionaryOptions(capacity=4, chunk_size=4)
    x = torch.zeros(1, 4, 1, 4)
    assert choose("auto", x, x, x, options) in ("chunked", "native")
    gpu = torch.zeros(1, 4, 1, 4, device="meta")

    class OnGpu:
        """What `choose` asks of a tensor, as a tensor on a GPU would answer."""

        device = torch.device("cuda")
        dtype, shape = gpu.dtype, gpu.shape

    assert choose("auto", OnGpu, OnGpu, OnGpu, options) == "triton"
    assert choose("auto", OnGpu, OnGpu, OnGpu, replace(options, seeds="kmeans++")) == "chunked"
    OnGpu.dtype = torch.float64
    assert choose("auto", OnGpu, OnGpu, OnGpu, options) == "chunked"


def test_heads_that_lie_far_apart(tmp_path):
    """2^31 elements and more from the first head to the last, in a file that is nearly all holes."""
    h, t, d, apart = 4, 9, 4, 2**30
    far = torch.from_file(str(tmp_path / "heads"), shared=True, size=h * apart, dtype=torch.float16)
    near = torch.randn(3, h, t, d, generator=torch.Generator().manual_seed(0)).half()
    heads = far.view(h, apart)[:, : 3 * t * d].view(h, 3, t, d)
    heads.copy_(near.transpose(0, 1))
    options, beta = DictionaryOptions(capacity=4, chunk_size=3), torch.ones(h, device=DEVICE)
    results = []
    for x in (heads.transpose(0, 1), near):
        q, k, v = (y.transpose(0, 1)[None].to(DEVICE) for y in x)  # [1, T, H, D]
        o, state = ovq_attention(q, k, v, beta, options, output_final_state=True, implementation="triton")
        written, _ = update(state, k, v, options, implementation="triton")
        results.append((o, *state.state_dict().values(), *written.state_dict().values()))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_update_passes_no_gradient_on():
    inputs = random_inputs(dtype=torch.float32)
    options = DictionaryOptions(capacity=4)
    with pytest.raises(ValueError, match="a gradient is wanted"):
        update(
            empty_state(inputs, options).to(DEVICE),
            inputs.k.to(DEVICE).requires_grad_(),
            inputs.v.to(DEVICE),
            options,
            implementation="triton",
        )


def test_a_cpu_without_the_interpreter_is_told_so():
    code = (
        "import torch; from kernels import *; x = torch.zeros(1, 4, 1, 4)\n"
        "ovq_attention(x, x, x, torch.ones(1), DictionaryOptions(capacity=4), implementation='triton')"
    )
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "it needs tensors on a GPU, these are on cpu (or set TRITON_INTERPRET=1" in run.stderr
