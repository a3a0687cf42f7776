"""A file of nested plain data and tensors: JSON and raw bytes, with a checksum. Reading it runs no code.

Layout: the line `cl-ovq checkpoint 1`, a line with the SHA-256 of all that follows, a line of JSON, and the tensors'
bytes one after the other. The JSON holds `tree`, in which a tensor is `{"tensor": number}`, and `tensors`, their types
and shapes.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from cl_ovq.errors import UserError
from cl_ovq.paths import read_regular, replace_file
from cl_ovq.runs.validate import first_mistake

NAME = "checkpoint.bin"
MAGIC = b"cl-ovq checkpoint 1\n"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


def write_checkpoint(path: Path, tree: Any) -> None:
    """Write a tree, whole or not at all.

    Args:
        path: the file; an older one is replaced.
        tree: nested dicts, lists and tuples of None, booleans, numbers, text and tensors.

    Raises:
        TypeError: there is something else in the tree.
        OSError: it cannot be written; the older one stays.
    """
    tensors: list[Tensor] = []
    packed = _pack(tree, tensors)
    described = [{"type": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)} for t in tensors]
    parts = [json.dumps({"tree": packed, "tensors": described}).encode() + b"\n"]
    parts += [tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    replace_file(path, [MAGIC, digest.hexdigest().encode() + b"\n", *parts], durable=True)


def read_checkpoint(path: Path) -> Any:
    """Read a tree. Nothing is allocated that the file is too small to hold.

    Raises:
        UserError: the file cannot be read, is not a checkpoint, or is damaged.
    """
    content = read_bytes(path, "the checkpoint")
    if not content.startswith(MAGIC):
        raise UserError(
            f"{path} is not a checkpoint of this program version, which starts with '{MAGIC.decode()[:-1]}'"
        )
    digest, _, body = content[len(MAGIC) :].partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise UserError(f"the checkpoint {path} is truncated or damaged: checksum mismatch")
    head, _, data = body.partition(b"\n")
    try:
        header = _Header.model_validate(json.loads(head), strict=True)
        return _unpack(header.tree, _tensors(header.tensors, data))
    except (ValueError, TypeError, RecursionError) as error:
        reason = first_mistake(error) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"the checkpoint {path} is not well formed: {reason}") from error


def read_bytes(path: Path, what: str) -> bytes:
    """Return the content of a regular file.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        return read_regular(path)
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from error


class _Described(BaseModel):
    """Type and shape of a tensor."""

    model_config = ConfigDict(extra="forbid")
    type: str
    shape: list[Annotated[int, Field(ge=0, lt=2**63)]]


class _Header(BaseModel):
    """The line of JSON."""

    model_config = ConfigDict(extra="forbid")
    tree: Any
    tensors: list[_Described]


def _tensors(described: list[_Described], data: bytes) -> list[Tensor]:
    """Return the tensors that the file holds, each with memory of its own.

    Raises:
        ValueError: a type is unknown, or they are not as large as the file.
    """
    sizes = []
    for one in described:
        if one.type not in DTYPES:
            raise ValueError(f"a tensor is of type '{one.type}': known: {', '.join(DTYPES)}")
        sizes.append(DTYPES[one.type].itemsize * math.prod(one.shape))
    if sum(sizes) != len(data):
        raise ValueError(f"its tensors should have {sum(sizes)} bytes, but have {len(data)}")
    found, start = [], 0
    for one, size in zip(described, sizes, strict=True):
        dtype = DTYPES[one.type]
        raw = bytearray(data[start : start + size])
        start += size
        # PyTorch does not take a buffer without bytes.
        flat = torch.frombuffer(raw, dtype=torch.uint8).view(dtype) if size else torch.empty(0, dtype=dtype)
        found.append(flat.view(one.shape))
    return found


def _pack(tree: Any, tensors: list[Tensor]) -> Any:
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return {"tensor": len(tensors) - 1}
    if isinstance(tree, list):
        return [_pack(item, tensors) for item in tree]
    if isinstance(tree, tuple):
        return {"tuple": [_pack(item, tensors) for item in tree]}
    if isinstance(tree, dict):
        return {"dict": [[_pack(key, tensors), _pack(value, tensors)] for key, value in tree.items()]}
    raise TypeError(f"a checkpoint holds plain data and tensors, not {type(tree).__name__}")


def _unpack(tree: Any, tensors: list[Tensor]) -> Any:
    """Return what was packed.

    Raises:
        ValueError: it is not as `_pack` makes it.
    """
    if isinstance(tree, list):
        return [_unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    kind, content = next(iter(tree.items()), (None, None))
    if len(tree) == 1 and kind == "tensor" and type(content) is int and 0 <= content < len(tensors):
        return tensors[content]
    if len(tree) == 1 and kind in ("tuple", "dict") and isinstance(content, list):
        if kind == "tuple":
            return tuple(_unpack(item, tensors) for item in content)
        if all(isinstance(pair, list) and len(pair) == 2 for pair in content):
            return {_unpack(key, tensors): _unpack(value, tensors) for key, value in content}
    raise ValueError(f"{{{kind!r}: ...}} is not part of it")
