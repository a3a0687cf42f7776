"""A file of nested plain data and tensors: JSON and raw bytes, with a checksum. Reading it runs no code.

Layout: the line `cl-ovq checkpoint 1`, a line with the SHA-256 of all that follows, a line of JSON, and the tensors'
bytes one after the other. The JSON holds `tree`, in which a tensor is `{"tensor": number}`, and `tensors`, their types
and shapes.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_ovq.errors import UserError

NAME = "checkpoint.bin"
MAGIC = b"cl-ovq checkpoint 1\n"


def write_checkpoint(path: Path, tree: Any) -> None:
    """Write a tree, whole or not at all.

    Args:
        path: the file; an older one is replaced.
        tree: nested dicts, lists and tuples of None, booleans, numbers, text and tensors.

    Raises:
        TypeError: there is something else in the tree.
    """
    tensors: list[Tensor] = []
    packed = _pack(tree, tensors)
    described = [{"type": str(t.dtype).removeprefix("torch."), "shape": list(t.shape)} for t in tensors]
    parts = [json.dumps({"tree": packed, "tensors": described}).encode() + b"\n"]
    parts += [tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.writelines([MAGIC, digest.hexdigest().encode() + b"\n", *parts])
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_checkpoint(path: Path) -> Any:
    """Read a tree.

    Raises:
        UserError: the file cannot be read, is not a checkpoint, or is damaged.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"the checkpoint {path} cannot be read: {error.strerror}") from error
    if not content.startswith(MAGIC):
        raise UserError(f"{path} is not a checkpoint of this program and version, which begins '{MAGIC.decode()[:-1]}'")
    digest, _, body = content[len(MAGIC) :].partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise UserError(f"the checkpoint {path} is truncated or damaged: its checksum does not fit its content")
    head, _, data = body.partition(b"\n")
    header = json.loads(head)
    tensors, start = [], 0
    for described in header["tensors"]:
        dtype = getattr(torch, described["type"])
        size = dtype.itemsize * torch.Size(described["shape"]).numel()
        raw = torch.frombuffer(bytearray(data[start : start + size]), dtype=torch.uint8) if size else None
        start += size
        empty = torch.empty(described["shape"], dtype=dtype)
        tensors.append(empty if raw is None else raw.view(dtype).view(described["shape"]))
    return _unpack(header["tree"], tensors)


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
    if isinstance(tree, list):
        return [_unpack(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in content)
    return {_unpack(key, tensors): _unpack(value, tensors) for key, value in content}
