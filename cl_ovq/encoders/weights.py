"""Weights that come from others: read as tensors, never as code, and put where they belong."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_ovq.errors import UserError, first_line
from cl_ovq.paths import expanded, is_file
from streams import StreamDataError
from streams.files import sha256_of, states_of

SAFETENSORS = ".safetensors"
# Under which training scripts keep the weights in what they save, beside optimizers and the like.
WRAPPERS = ("state_dict", "model_state_dict", "model", "state", "net", "network", "student", "teacher", "encoder")


def weights_file(name: str) -> Path:
    """Return the file of weights that an option names.

    Raises:
        UserError: there is none.
    """
    path = expanded(name)
    if not is_file(path):
        raise UserError(f"encoder.weights: there is no file {path}")
    return path


def checksum(files: Iterable[Path]) -> str | None:
    """Return the sha256 of a file, or of several ones' together; None of none.

    Raises:
        UserError: one of them cannot be read.
    """
    try:
        found = [_sha256(*state) for state in states_of(files)]
    except StreamDataError as error:
        raise UserError(f"encoder.weights: {error}") from error
    if len(found) < 2:
        return found[0] if found else None
    return hashlib.sha256("".join(found).encode()).hexdigest()


@lru_cache(maxsize=64)
def _sha256(path: str, *state: int) -> str:
    return sha256_of(Path(path))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights; no code in it is run.

    Raises:
        UserError: it cannot be read, or holds more than tensors.
    """
    try:
        found = _read(path)
    except UserError:
        raise
    except Exception as error:  # of whatever kind: it may be any file
        more = _pickled(path) and ("weights_only" in str(error) or "Unsupported" in str(error))
        reason = "it is damaged, or holds something else"  # PyTorch's own words, such as "105", help nobody
        if more:
            reason = "it holds more than tensors, and reading it would run code: save model.state_dict() in its place"
        elif isinstance(error, OSError):
            reason = first_line(error)
        raise UserError(f"encoder.weights: {path} cannot be read as weights: {reason}") from error
    for _ in range(2):
        inner = next((found[key] for key in WRAPPERS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = dict(inner)
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(
            f"encoder.weights: {path} contains no weights: its keys are {', '.join(map(str, found)) or 'none'}"
        )
    return tensors


def _pickled(path: Path) -> bool:
    """Return whether a file begins as those of `torch.save` do, of today (an archive) or of before (a pickle)."""
    try:
        with path.open("rb") as file:
            return file.read(2).startswith((b"PK", b"\x80"))
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == SAFETENSORS:
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise UserError(f"encoder.weights: {path} needs the package safetensors ({error})") from error
        return dict(load_file(path))
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    if not isinstance(found, Mapping):
        raise UserError(f"encoder.weights: {path} contains a {type(found).__name__}, not a state dict")
    return dict(found)


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], left_out: Iterable[str], what: str) -> None:
    """Put weights into a network, all of them but those of a classifier, whatever stands before their names.

    Args:
        network: without its classifier.
        tensors: by name.
        left_out: names of modules whose weights are not looked at.
        what: names file and network in messages.

    Raises:
        UserError: one is missing, has another shape, holds what is not finite, or belongs nowhere.
    """
    wanted = network.state_dict()
    prefix = _prefix(wanted, tensors)
    ignored = tuple(f"{name}." for name in left_out)
    given = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    given = {key: value for key, value in given.items() if not key.startswith(ignored)} if ignored else given
    # How many batches a normalisation has seen: files of old versions lack it, and nothing here needs it.
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    unknown = [key for key in given if key not in wanted]
    if missing:
        close = difflib.get_close_matches(missing[0], unknown, n=1, cutoff=0)
        hint = f": the nearest that it has is '{close[0]}'" if close else ""
        raise UserError(f"encoder.weights: {what}: it lacks '{missing[0]}'{_more(missing)}{hint}")
    if unknown:
        close = difflib.get_close_matches(unknown[0], wanted, n=1, cutoff=0)
        belongs = "belong" if len(unknown) > 1 else "belongs"
        raise UserError(
            f"encoder.weights: {what}: '{unknown[0]}'{_more(unknown)} {belongs} nowhere: the nearest match is "
            f"'{close[0]}'"
        )
    for key, value in given.items():
        if value.shape != wanted[key].shape:
            raise UserError(
                f"encoder.weights: {what}: '{key}' is {list(value.shape)} in the file, but {list(wanted[key].shape)} "
                "in the model"
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UserError(f"encoder.weights: {what}: '{key}' contains non-finite values")
    network.load_state_dict(given, strict=False)


def _prefix(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """Return what stands before the names of a network's weights in a file, such as `module.`: what fits most."""
    first = next(iter(wanted), "")
    candidates = ["", *(key.removesuffix(first) for key in tensors if first and key.endswith(f".{first}"))]
    return max(candidates, key=lambda prefix: sum(prefix + key in tensors for key in wanted))


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
