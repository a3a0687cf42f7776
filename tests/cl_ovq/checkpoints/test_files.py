"""Checkpoint files: plain data and tensors come back as they were, and no code runs."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_ovq.errors import UserError
from cl_ovq.runs.checkpoints import read_checkpoint, write_checkpoint

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(tree=trees)
def test_plain_data_comes_back(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("plain") / "checkpoint.bin"
    write_checkpoint(path, tree)
    assert read_checkpoint(path) == tree
    assert repr(read_checkpoint(path)) == repr(tree)  # types and signs too


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)])
def test_tensors_come_back(tmp_path, dtype, shape):
    tensor = (10 * torch.randn(shape)).to(dtype)
    write_checkpoint(tmp_path / "x", {"a": [tensor, tensor.T if tensor.ndim == 2 else tensor]})
    (found, _) = read_checkpoint(tmp_path / "x")["a"]
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.equal(found, tensor)
    found.zero_()  # its own memory, which may be written


def test_a_view_is_written_as_what_it_shows(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    write_checkpoint(tmp_path / "x", [base.T, base[:, 1]])
    found = read_checkpoint(tmp_path / "x")
    assert torch.equal(found[0], base.T)
    assert torch.equal(found[1], base[:, 1])


def test_special_numbers(tmp_path):
    write_checkpoint(tmp_path / "x", [float("inf"), float("-inf"), float("nan")])
    assert repr(read_checkpoint(tmp_path / "x")) == "[inf, -inf, nan]"


def test_other_objects_are_not_written_and_the_old_file_stays(tmp_path):
    path = tmp_path / "x"
    write_checkpoint(path, 1)
    with pytest.raises(TypeError, match="not object"):
        write_checkpoint(path, [object()])
    assert read_checkpoint(path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_every_changed_byte_is_seen(tmp_path):
    path = tmp_path / "x"
    write_checkpoint(path, {"a": torch.arange(3), "b": "text"})
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(UserError):
            read_checkpoint(path)


def test_a_pickle_is_not_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("code ran",))

    (tmp_path / "x").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="is not a checkpoint"):
        read_checkpoint(tmp_path / "x")
