"""Native code for CPUs: against the PyTorch path, at real sizes, in every layout and dtype that it serves."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_helpers import (
    NATIVE,
    Inputs,
    all_inputs,
    all_options,
    assert_any_case_is_as_chunked,
    assert_as_chunked,
    assert_states_close,
    empty_state,
    examples,
    random_inputs,
    relative_rms,
    served,
)

import kernels.native.library
from kernels import LEARNING_RATES, READ_OUTS, DictionaryOptions, ovq_attention, update
from kernels.attention import choose
from kernels.native import library

pytestmark = pytest.mark.skipif(not NATIVE, reason="needs a C++ compiler, and no GPU")


@given(inputs=all_inputs(torch.float32), options=all_options(), before=st.integers(0, 8), shared=st.booleans())
@examples(150)
def test_outputs_states_and_gradients(inputs, options, before, shared):
    assert_any_case_is_as_chunked("native", inputs, options, before, shared)


@pytest.mark.parametrize("growth", ["plateau", "novelty", "all"])
@pytest.mark.parametrize(("t", "group", "n", "length"), [(700, 2, 96, 64), (600, 1, 300, 256), (300, 4, 40, 129)])
def test_several_tiles_of_every_kind(growth, t, group, n, length):
    """Clusters that no rounding confuses, so that both paths make the same dictionary of many chunks."""
    g = torch.Generator().manual_seed(0)
    inputs = random_inputs(b=2, t=t, h=2, dk=16, dv=24, group=group, dtype=torch.float32, masked=0.1)
    centres = torch.randn(2 * n, 16, generator=g)
    inputs.k[:] = centres[torch.randint(2 * n, inputs.k.shape[:3], generator=g)] + 0.01 * torch.randn(inputs.k.shape)
    options = DictionaryOptions(capacity=n, chunk_size=length, growth=growth)
    assert_as_chunked("native", inputs, options, empty_state(inputs, options))


@pytest.mark.parametrize("learning_rate", LEARNING_RATES)
@pytest.mark.parametrize("read_out", READ_OUTS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 2e-3)], ids=str)
def test_narrow_inputs(dtype, tolerance, read_out, learning_rate):
    options = DictionaryOptions(capacity=16, chunk_size=16, read_out=read_out, learning_rate=learning_rate)
    inputs = random_inputs(t=60, dk=16, dv=16, dtype=dtype)
    o, state = inputs.run(options, "native")
    exact, exact_state = inputs.to(torch.float64).run(options, "reference")
    assert o.dtype == dtype
    assert state.keys.dtype == torch.float32
    assert relative_rms(o, exact) < tolerance
    assert_states_close(state.to(dtype=torch.float64), exact_state, rtol=1e-4, atol=1e-4)


def test_views_of_any_layout():
    options = DictionaryOptions(capacity=8, chunk_size=5)
    inputs = random_inputs(b=2, t=23, h=2, dk=6, dv=6, dtype=torch.float32)
    expected, _ = inputs.run(options, "native")
    qkv = torch.cat([inputs.q, inputs.k, inputs.v], 2)  # as one product gives them
    q, k, v = qkv.split(2, 2)
    across = q.mT.contiguous().mT  # features do not lie side by side
    assert across.stride(-1) != 1
    heads_first = k.transpose(1, 2).contiguous().transpose(1, 2)
    o, _ = Inputs(across, heads_first, v, inputs.beta, inputs.mask).run(options, "native")
    assert torch.equal(o, expected)


@given(inputs=all_inputs(torch.float32), options=all_options(), before=st.integers(0, 20), shared=st.booleans())
@examples(100)
def test_writes(inputs, options, before, shared):
    options = served(options, "native")
    rows = 1 if shared else inputs.k.shape[0]
    state = empty_state(inputs, options, rows)
    if before:
        history = random_inputs(rows, before, *inputs.k.shape[2:], inputs.v.shape[-1], dtype=torch.float32, seed=7)
        state, _ = update(state, history.k, history.v, options, implementation="chunked")
    kept = state.clone()
    for mask in (inputs.mask, None):
        k, v = (x if mask is not None else x.nan_to_num(1.0) for x in (inputs.k, inputs.v))
        expected, slots = update(state, k, v, options, mask, implementation="chunked")
        found, found_slots = update(state, k, v, options, mask, implementation="native")
        assert torch.equal(found_slots, slots)
        assert_states_close(found, expected, rtol=1e-4, atol=1e-5)
    assert_states_close(state, kept, rtol=0, atol=0)


def test_a_write_of_nothing_and_one_with_a_gradient_are_not_served():
    options, inputs = DictionaryOptions(capacity=4), random_inputs(t=3, dtype=torch.float32)
    state = empty_state(inputs, options)
    for k, message in ((inputs.k[:, :0], "there are no tokens"), (inputs.k.requires_grad_(), "a gradient is wanted")):
        with pytest.raises(ValueError, match=f"implementation 'native' cannot serve this update: {message}"):
            update(state, k, inputs.v[:, : k.shape[1]], options, implementation="native")
        update(state, k, inputs.v[:, : k.shape[1]], options)  # auto takes chunked


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_token_by_token_is_the_whole(biased, shared):
    """Without a mask or a gradient, where steps that close no chunk take a short way."""
    options = DictionaryOptions(capacity=6, chunk_size=5)
    inputs = random_inputs(b=2, t=23, h=2, group=2, biased=biased, dtype=torch.float32)
    state = None
    if shared:
        _, state = random_inputs(t=13, h=2, dtype=torch.float32, seed=3).run(options, "chunked")

    def run(implementation, start, stop, state):
        return ovq_attention(
            *(x[:, start:stop] for x in (inputs.q, inputs.k, inputs.v)),
            inputs.beta,
            options,
            initial_state=state,
            slot_bias=inputs.slot_bias,
            output_final_state=True,
            implementation=implementation,
        )

    expected, final = run("chunked", 0, 23, state)
    outputs = []
    for t in range(23):
        kept = None if state is None else state.clone()
        o, new = run("native", t, t + 1, state)
        again, _ = run("native", t, t + 1, state)
        assert torch.equal(o, again)  # a state is a value: going on from it twice gives the same
        if kept is not None:
            assert_states_close(state, kept, rtol=0, atol=0)
        outputs.append(o)
        state = new
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-4, atol=1e-5)
    assert_states_close(state, final, rtol=1e-4, atol=1e-5)


@given(
    group=st.sampled_from([1, 3]),
    read_out=st.sampled_from(READ_OUTS),
    query_norm=st.booleans(),
    biased=st.booleans(),
    forks=st.lists(st.integers(0, 12), min_size=4, max_size=12),
)
@examples(60)
def test_every_branch_of_decoding_is_its_own_sequence(group, read_out, query_norm, biased, forks):
    """Steps go on from any state, as beams do; places of an open chunk are shared only while that is safe."""
    query_norm = query_norm or read_out == "gmr"
    options = DictionaryOptions(capacity=6, chunk_size=7, read_out=read_out, query_norm=query_norm)
    inputs = random_inputs(b=2, t=16 + len(forks), h=2, group=group, biased=biased, dtype=torch.float32, masked=0.3)
    before = inputs.cut(0, 16)  # two closed chunks, and two tokens of the third; what is masked holds NaN

    def go_on(implementation, state, t):
        one = inputs.cut(t, t + 1).on_tokens(lambda x: x.nan_to_num(1.0))
        return ovq_attention(
            *(one.q, one.k, one.v, one.beta, options),
            initial_state=state,
            slot_bias=one.slot_bias,
            output_final_state=True,
            implementation=implementation,
        )

    states = {name: [before.run(options, name)[1]] for name in ("native", "chunked")}
    for number, fork in enumerate(forks):
        found = {name: go_on(name, all_[fork % len(all_)], 16 + number) for name, all_ in states.items()}
        torch.testing.assert_close(found["native"][0], found["chunked"][0], rtol=1e-4, atol=1e-5)
        for name, (_, state) in found.items():
            states[name].append(state)
    for native, chunked in zip(states["native"], states["chunked"], strict=True):
        assert_states_close(native, chunked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, beta: (q[:, :, :3], k, v, beta[:3]), "q has 3 heads"),
        (lambda q, k, v, beta: (q, k, v[:, :, :1], beta), "expected q"),
        (lambda q, k, v, beta: (q, k, v, beta[:1]), r"beta must have shape \[4\]"),
        (lambda q, k, v, beta: (q[:1], k[:1], v[:1], beta), "the state has 2 rows, the tokens 1"),
    ],
)
def test_a_step_after_a_step_checks_what_changed(change, message):
    options, inputs = (
        DictionaryOptions(capacity=4, chunk_size=9),
        random_inputs(b=2, t=1, h=2, group=2, dtype=torch.float32),
    )
    tensors = inputs.q, inputs.k, inputs.v, inputs.beta
    _, state = ovq_attention(*tensors, options, output_final_state=True)
    _, state = ovq_attention(*tensors, options, initial_state=state, output_final_state=True)
    with pytest.raises(ValueError, match=message):
        ovq_attention(*change(*tensors), options, initial_state=state)
    with pytest.raises(ValueError, match="slot_bias must be floating"):
        ovq_attention(*tensors, options, initial_state=state, slot_bias=torch.zeros(3))


def test_steps_in_between_compile_nothing_anew(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    options, inputs = DictionaryOptions(capacity=4, chunk_size=9), random_inputs(t=1, h=2, dtype=torch.float32)

    def step(state):
        tensors = inputs.q, inputs.k, inputs.v, inputs.beta
        return ovq_attention(*tensors, options, initial_state=state, output_final_state=True)

    torch._dynamo.reset()
    with torch.no_grad():
        _, state = step(step(empty_state(inputs, options))[1])
        compiled = torch.compile(step, fullgraph=True, backend="eager")
        expected, _ = step(state)
        for _ in range(2):
            torch.testing.assert_close(compiled(state)[0], expected)
            kept = step(state)
        assert torch.equal(kept[0], expected)


def test_threads_do_not_change_a_bit():
    options = DictionaryOptions(capacity=64, chunk_size=64)
    inputs = random_inputs(b=2, t=1024, h=4, dk=16, dv=16, dtype=torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(inputs.run(options, "native"))
    finally:
        torch.set_num_threads(before)
    for o, state in found[1:]:
        assert torch.equal(o, found[0][0])
        assert torch.equal(state.keys, found[0][1].keys)


def test_auto_takes_it_where_it_serves(monkeypatch):
    inputs = random_inputs(t=4, dtype=torch.float32)
    some = DictionaryOptions(capacity=4)
    assert choose("auto", inputs.q, inputs.k, inputs.v, some) == "native"
    assert choose("auto", *(x.double() for x in (inputs.q, inputs.k, inputs.v)), some) == "chunked"
    for changes in ({"growth": "recycle"}, {"seeds": "random"}, {"value_weight": 0.5}):
        assert choose("auto", inputs.q, inputs.k, inputs.v, DictionaryOptions(capacity=4, **changes)) == "chunked"
    monkeypatch.setattr(kernels.native.library, "_loaded", False)
    assert choose("auto", inputs.q, inputs.k, inputs.v, some) == "chunked"


@pytest.mark.parametrize(
    ("changes", "dtype", "message"),
    [
        ({"growth": "recycle"}, torch.float32, "growth 'recycle' is not served"),
        ({"seeds": "random"}, torch.float32, "seeds 'random' are not served"),
        ({"value_weight": 0.5}, torch.float32, "value_weight=0.5 is not served"),
        ({}, torch.float64, "the inputs need statistics in torch.float64"),
    ],
)
def test_what_it_does_not_serve_is_said_in_a_line(changes, dtype, message):
    inputs = random_inputs(t=4, dtype=dtype)
    with pytest.raises(ValueError, match=f"implementation 'native' cannot serve this call: {message}"):
        inputs.run(DictionaryOptions(capacity=4, **changes), "native")


def test_it_is_compiled_once_and_a_compiler_that_fails_is_named(tmp_path, monkeypatch):
    """In processes of their own: a library that is loaded stays so."""
    code = (
        "import torch; from kernels import *; from kernels.native import library\n"
        "x = torch.randn(1, 9, 1, 4)\n"
        "try:\n    ovq_attention(x, x, x, 1.0, DictionaryOptions(capacity=4), implementation='native')\n"
        "    print(library.library_path())\n"
        "except ValueError as error:\n    print('ValueError', error)\n"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(**environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert run(CXX="/bin/false").startswith("ValueError implementation 'native' cannot be compiled by /bin/false")
    assert not list(tmp_path.rglob("*.so"))
    assert run(CL_OVQ_NATIVE="0").startswith("ValueError implementation 'native' needs Linux and a C++ compiler")
    damaged = tmp_path / "cl-ovq" / "native" / library.library_path().name
    damaged.parent.mkdir(parents=True, exist_ok=True)
    damaged.write_bytes(b"not a library")
    found = run(CXX="/bin/false", CL_OVQ_NATIVE="1")  # auto would take chunked; who asks for it is told
    assert found.startswith("ValueError implementation 'native' cannot be compiled")


def test_autograd_sees_an_operator():
    x = torch.randn(1, 30, 2, 4, requires_grad=True)
    options = DictionaryOptions(capacity=6, chunk_size=8)
    o, _ = ovq_attention(x, x, x, torch.ones(2), options, implementation="native")
    assert "native" in type(o.grad_fn).__name__.lower()
