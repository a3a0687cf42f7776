"""MNIST, CIFAR-10 and CIFAR-100, read and downloaded by torchvision.

The files are looked for in `data_dir`, in torchvision's layout, then in the user's cache, into which torchvision
downloads them. CIFAR's are verified by torchvision's checksums of the files, MNIST's by those of the downloads.
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
from streams.provided import providable

if TYPE_CHECKING:
    from streams.split import LabelledImages

TITLES = {"MNIST": "MNIST", "CIFAR10": "CIFAR-10", "CIFAR100": "CIFAR-100"}  # by torchvision's name


@providable
def read_torchvision(dataset: str, data_dir: str | None = None) -> LabelledImages:
    """Finds and reads a data set: the official test set last.

    Args:
        dataset: torchvision's name of it, one of `TITLES`.
        data_dir: folder to look into first, and to download into if need be (otherwise the user's cache).

    Raises:
        StreamDataError: nowhere to be found.
    """
    import numpy as np

    from streams.split import LabelledImages

    source, (train, test) = _find(dataset, data_dir)
    images = np.concatenate([_images(part) for part in (train, test)])
    targets = np.concatenate([np.asarray(part.targets, dtype=np.uint8) for part in (train, test)])
    arrays = {"images": images, "targets": targets}
    names = tuple(map(str, train.classes))
    return LabelledImages(
        dataset=TITLES[dataset],
        source=source,
        files={name: {"sha256": hashlib.sha256(array.tobytes()).hexdigest()} for name, array in arrays.items()},
        images=images,
        targets=targets,
        divisor=255.0,
        # MNIST's are "0 - zero", ...
        class_names=tuple(name.split(" - ")[0] for name in names),
        n_test=len(test),
    )


def _images(dataset: Any) -> Any:
    """Returns the images of a torchvision data set as `[n, C, H, W]` uint8."""
    import numpy as np

    data = np.asarray(dataset.data, dtype=np.uint8)
    return data[:, None] if data.ndim == 3 else np.ascontiguousarray(data.transpose(0, 3, 1, 2))


def _find(dataset: str, data_dir: str | None) -> tuple[str, tuple[Any, Any]]:
    """Returns where the data set was found, and its training and test part, downloading it as a last resort."""
    folder = Path(data_dir).expanduser() if data_dir else None
    cache = cache_folder()
    for source, root in (("stream.data_dir", folder), ("download", cache)):
        if root is not None and (found := _read(dataset, root)):
            return source, found
    target = folder or cache
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
    except (RuntimeError, pickle.UnpicklingError):  # torchvision: not found or corrupted
        if download:
            raise
        return None
