"""Fashion-MNIST: Zalando's 70 000 grey images of 28 x 28, 10 classes of clothing.

Source: Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747. The four files are looked for in `data_dir`; without one, where
the Debian package `dataset-fashion-mnist` installs them, then in the cache. torchvision downloads what is missing.

Files are verified by the checksum of their *unpacked* contents: archives of the same data differ (the Debian package
repacks them without name and time stamp, so that torchvision's MD5 sums of the archives do not hold for it).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import os
import socket
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import StreamDataError
from streams.files import named_path, read_data
from streams.shared_data import providable

if TYPE_CHECKING:
    import numpy as np

    from streams.split import LabelledData

# sha256 of the unpacked files.
FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
N_TEST = 10_000
LARGEST = 1 << 26  # bytes of a file; the largest has 47 million unpacked

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TORCHVISION_SUBFOLDER = Path("FashionMNIST", "raw")
DOWNLOAD_TIMEOUT_S = 30.0


@providable
def read_fashion_mnist(data_dir: str | None = None) -> LabelledData:
    """Finds, verifies and reads the data set: images `[70000, 1, 28, 28]`, the official test set last.

    Args:
        data_dir: the only folder to look into, and to download into if need be; None for the Debian package and the
            user's cache.

    Raises:
        StreamDataError: nowhere to be found, or a file is not the known one.
    """
    import numpy as np

    from streams.split import LabelledData

    source, paths = _find(data_dir)
    arrays: dict[str, np.ndarray] = {}
    checksums: dict[str, dict[str, str]] = {}
    for name, path in paths.items():
        arrays[name], checksums[path.name] = _read_verified(path, FILES[name])
    images = np.concatenate([arrays["train-images-idx3-ubyte"], arrays["t10k-images-idx3-ubyte"]])
    return LabelledData(
        dataset="Fashion-MNIST",
        source=source,
        files=checksums,
        inputs=images[:, None],
        targets=np.concatenate([arrays["train-labels-idx1-ubyte"], arrays["t10k-labels-idx1-ubyte"]]),
        divisor=255.0,
        class_names=CLASS_NAMES,
        n_test=N_TEST,
    )


def _find(data_dir: str | None) -> tuple[str, dict[str, Path]]:
    """Returns where the data set was found and the path of each of its files, downloading it as a last resort."""
    folder = named_path(data_dir, "data_dir") if data_dir else None
    cache = folder or cache_folder()
    if folder is None and (paths := _files_in(DEBIAN_FOLDER)):
        return "Debian package dataset-fashion-mnist", paths
    if paths := _files_in(cache):
        return "stream.data_dir" if folder else "download", paths
    try:
        _download(cache)
    except (OSError, RuntimeError, EOFError, zlib.error, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StreamDataError(
            "Fashion-MNIST was not found; three ways to provide it: set stream.data_dir to a folder with its four files"
            f"{f' (not all in {folder})' if folder else ''}, install the Debian package dataset-fashion-mnist, or go "
            f"online for torchvision to download it (tried: {reason})"
        ) from error
    if paths := _files_in(cache):
        return "download", paths
    raise StreamDataError(f"Fashion-MNIST: the download left no files in {cache / TORCHVISION_SUBFOLDER}")


def _files_in(folder: Path) -> dict[str, Path] | None:
    """Returns the path of each file, packed or not, in `folder` or torchvision's subfolder of it; None if one lacks."""
    for place in (folder, folder / TORCHVISION_SUBFOLDER):
        candidates = {name: (place / name, place / f"{name}.gz") for name in FILES}
        found = {name: next(filter(os.path.isfile, both), None) for name, both in candidates.items()}
        complete = {name: path for name, path in found.items() if path is not None}
        if len(complete) == len(FILES):
            return complete
    return None


def _read_verified(path: Path, expected: str) -> tuple[np.ndarray, dict[str, str]]:
    """Reads one idx file, packed or not, whose unpacked contents must have the sha256 `expected`.

    Returns:
        The array, and the sha256 sums of the file as it lies there and of its unpacked contents.

    Raises:
        StreamDataError: the file cannot be read or unpacked, or its contents are not the known ones.
    """
    stored = read_data(path, LARGEST)
    try:
        # No more than that: an archive of a few megabytes may hold any number of zeros.
        contents = gzip.GzipFile(fileobj=io.BytesIO(stored)).read(LARGEST) if path.suffix == ".gz" else stored
    except (OSError, EOFError, zlib.error) as error:
        raise StreamDataError(
            f"{path}: is damaged ({error}); expected an archive with contents of sha256 {expected}, "
            f"found {len(stored)} bytes with sha256 {hashlib.sha256(stored).hexdigest()}"
        ) from error
    found = hashlib.sha256(contents).hexdigest()
    if found != expected:
        unpacked = "unpacked " if path.suffix == ".gz" else ""
        raise StreamDataError(
            f"{path}: is not the Fashion-MNIST file; expected {unpacked}contents with sha256 {expected}, found {found}"
        )
    return _parse_idx(contents), {"sha256": hashlib.sha256(stored).hexdigest(), "unpacked_sha256": found}


def _parse_idx(contents: bytes) -> np.ndarray:
    """Reads an idx file of unsigned bytes: magic number 00 00 08 d, then d big-endian 32-bit sizes, then the values."""
    import numpy as np

    sizes = np.frombuffer(contents, dtype=">u4", offset=4, count=contents[3])
    return np.frombuffer(contents, dtype=np.uint8, offset=4 + 4 * len(sizes)).reshape(sizes)


def cache_folder() -> Path:
    """Returns the folder into which this user's downloads go."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cl-ovq")


def _download(root: Path) -> None:
    """Lets torchvision download the files into its subfolder of `root`.

    Raises:
        OSError, RuntimeError, EOFError, zlib.error, http.client.HTTPException: torchvision's and the network's.
    """
    from torchvision.datasets import FashionMNIST  # several seconds

    root.mkdir(parents=True, exist_ok=True)
    # Into a folder of its own first: a broken download leaves nothing behind, and processes that download at the same
    # time do not disturb each other.
    with tempfile.TemporaryDirectory(dir=root) as temporary, patience(DOWNLOAD_TIMEOUT_S):
        # Some versions of torchvision report on standard output, which belongs to the caller's results.
        with contextlib.redirect_stdout(sys.stderr):
            FashionMNIST(temporary, download=True)
        target = root / TORCHVISION_SUBFOLDER
        target.mkdir(parents=True, exist_ok=True)
        for path in (Path(temporary) / TORCHVISION_SUBFOLDER).iterdir():
            path.replace(target / path.name)


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Limits how long a silent server is waited for; torchvision sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
