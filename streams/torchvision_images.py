"""MNIST, CIFAR-10 and CIFAR-100, read and downloaded by torchvision.

The files are looked for in `data_dir`, in torchvision's layout, or in the user's cache if none is given; torchvision
downloads what is missing into the same folder. CIFAR's are verified by torchvision's checksums of the files, MNIST's by
those of the downloads.
"""

from __future__ import annotations

import hashlib
import http.client
import pickle
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streams.errors import StreamDataError
from streams.fashion_mnist import DOWNLOAD_TIMEOUT_S, cache_folder, patience
from streams.files import named_path
from streams.shared_data import providable

if TYPE_CHECKING:
    from streams.split import LabelledData

SHAPES = {"MNIST": (28, 28), "CIFAR10": (32, 32, 3), "CIFAR100": (32, 32, 3)}
TITLES = {"MNIST": "MNIST", "CIFAR10": "CIFAR-10", "CIFAR100": "CIFAR-100"}  # by torchvision's name


@providable
def read_torchvision(dataset: str, data_dir: str | None = None) -> LabelledData:
    """Finds and reads a data set: the official test set last.

    Args:
        dataset: torchvision's name of it, one of `TITLES`.
        data_dir: the only folder to look into, and to download into if need be; None for the user's cache.

    Raises:
        StreamDataError: nowhere to be found, or not what it should be.
    """
    import numpy as np

    from streams.split import LabelledData

    source, (train, test) = _find(dataset, data_dir)
    for part, name in ((train, "training"), (test, "test")):
        _check(dataset, part, f"{TITLES[dataset]}: the {name} files")
    images = np.concatenate([_images(part) for part in (train, test)])
    targets = np.concatenate([np.asarray(part.targets, dtype=np.uint8) for part in (train, test)])
    arrays = {"images": images, "targets": targets}
    names = tuple(map(str, train.classes))
    return LabelledData(
        dataset=TITLES[dataset],
        source=source,
        files={name: {"sha256": hashlib.sha256(array.tobytes()).hexdigest()} for name, array in arrays.items()},
        inputs=images,
        targets=targets,
        divisor=255.0,
        # MNIST's are "0 - zero", ...
        class_names=tuple(name.split(" - ")[0] for name in names),
        n_test=len(test),
    )


def _check(dataset: str, part: Any, what: str) -> None:
    """Makes sure that images and labels are what they should be: torchvision verifies no unpacked file of MNIST's."""
    import numpy as np

    shape, labels = np.shape(part.data), np.asarray(part.targets)
    if len(shape) < 3 or tuple(shape[1:]) != SHAPES[dataset] or shape[0] == 0:
        raise StreamDataError(
            f"{what} contain images of shape {list(shape)}: expected [n, {str(SHAPES[dataset])[1:-1]}]"
        )
    if labels.shape != shape[:1]:
        raise StreamDataError(f"{what} contain {shape[0]} images but {labels.size} labels")
    if labels.min() < 0 or labels.max() >= len(part.classes):
        raise StreamDataError(f"{what} contain a label that is not one of its {len(part.classes)} classes")


def _images(dataset: Any) -> Any:
    """Returns the images of a torchvision data set as `[n, C, H, W]` uint8."""
    import numpy as np

    data = np.asarray(dataset.data, dtype=np.uint8)
    return data[:, None] if data.ndim == 3 else np.ascontiguousarray(data.transpose(0, 3, 1, 2))


def _find(dataset: str, data_dir: str | None) -> tuple[str, tuple[Any, Any]]:
    """Returns where the data set was found, and its training and test part, downloading it as a last resort."""
    folder = named_path(data_dir, "data_dir") if data_dir else None
    target = folder or cache_folder()
    if found := _read(dataset, target):
        return "stream.data_dir" if folder else "download", found
    try:
        with patience(DOWNLOAD_TIMEOUT_S):
            found = _read(dataset, target, download=True)
    except (OSError, RuntimeError, EOFError, zlib.error, http.client.HTTPException) as error:
        found, reason = None, " ".join(str(error).split()) or type(error).__name__
    else:
        reason = "the download left no files"
    if found is None:
        raise StreamDataError(
            f"{TITLES[dataset]} was not found; two ways to provide it: set stream.data_dir to a folder with its files "
            f"as torchvision lays them out{f' (not all in {folder})' if folder else ''}, or go online for torchvision "
            f"to download it (tried: {reason})"
        )
    return "download", found


def _read(dataset: str, root: Path, *, download: bool = False) -> tuple[Any, Any] | None:
    """Returns the two parts of a data set under `root`, or None if it is not there, whole and verified."""
    import contextlib
    import sys

    import torchvision.datasets  # several seconds

    read = getattr(torchvision.datasets, dataset)
    if download:
        root.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output belongs to the caller's results
            return read(root, train=True, download=download), read(root, train=False)
    except (RuntimeError, pickle.UnpicklingError) as error:  # torchvision: not found or corrupted
        if download:
            raise
        if "not found" in str(error) or isinstance(error, pickle.UnpicklingError):
            return None
        raise _damaged(dataset, root, error) from error
    except (AssertionError, AttributeError, EOFError, KeyError, MemoryError, TypeError, ValueError) as error:
        raise _damaged(dataset, root, error) from error


def _damaged(dataset: str, root: Path, error: BaseException) -> StreamDataError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return StreamDataError(f"{TITLES[dataset]}: the files in {root} are invalid: {reason}")
