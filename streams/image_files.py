"""Finds and decodes images of a user's own."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from streams.class_folders import SampleFile, files_by_class
from streams.errors import StreamDataError
from streams.files import near, read_data

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp")
)
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # by channels
FITS = ("crop", "pad", "stretch")
HEADS = ("path", "file", "image", "filename")  # of a list's first column, where its first line is a header
Read = Callable[[], bytes]
AT_ONCE = 256  # images that are decoded together
TOLD = 3  # images that a message names


@dataclass(frozen=True)
class Form:
    """What every image is made into.

    Attributes:
        size: height and width; None where all images have the same already.
        channels: 1 to 4, see `MODES`.
        fit: how an image of another shape becomes square, one of `FITS`.
    """

    size: int | None
    channels: int
    fit: str


def find_images(root: Path, option: str) -> list[SampleFile]:
    """Returns the images of a folder `class/image` or `domain/class/image`, or of a list, by name.

    Raises:
        StreamDataError: there are none, or they lie at different depths.
    """
    if root.is_file():
        return _listed(root, option)
    if not root.exists():
        raise StreamDataError(f"{option}: folder or list '{root}' not found{near(root)}")
    if not root.is_dir():
        raise StreamDataError(f"{option}: '{root}' is neither a folder of images nor a list of them")
    return files_by_class(root, SUFFIXES, option, "images")


def _listed(path: Path, option: str) -> list[SampleFile]:
    """Returns the images of a list: `path,label` or `path,label,domain` a line, paths from the list's folder."""
    try:
        rows = list(csv.reader(read_data(path).decode("utf-8-sig").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise StreamDataError(f"{option}: '{path}' is neither a folder nor a list of path,label[,domain]") from error
    numbered = [(number, [cell.strip() for cell in row]) for number, row in enumerate(rows, start=1) if row]
    if numbered and numbered[0][1][0].lower() in HEADS:
        del numbered[0]
    if not numbered:
        raise StreamDataError(f"{option}: the list '{path}' is empty")
    wanted = len(numbered[0][1])
    found = []
    for number, row in numbered:
        if len(row) != wanted or wanted not in (2, 3) or not all(row):
            raise StreamDataError(
                f"{path}, line {number}: '{','.join(row)}' is not path,label or, in all lines, path,label,domain"
            )
        found.append(SampleFile(path.parent / row[0], row[0], row[1], row[2] if wanted == 3 else None))
        if not found[-1].path.is_file():
            raise StreamDataError(f"{path}, line {number}: file '{found[-1].path}' not found")
    return found


def decode(content: bytes, form: Form) -> np.ndarray:
    """Returns an image as `[channels, height, width]` uint8, turned as its camera says.

    Raises:
        Exception: it cannot be read; Pillow's.
    """
    with Image.open(io.BytesIO(content)) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        low, high = image.getextrema() if image.mode in ("F", "I") else (0, 0)
        if image.mode == "F" or low < 0 or high > 65_535:  # type: ignore[operator]
            raise ValueError(f"values of mode {image.mode} have no known range: save it with 8 or 16 bits")
        if image.mode.startswith("I"):  # Pillow would cut off what is above 255
            image = Image.fromarray(np.rint(np.asarray(image, dtype=np.float64) / 257).astype(np.uint8))
        image = image.convert(MODES[form.channels])
        if form.size is not None:
            image = _resized(image, form.size, form.fit)
        pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resized(image: Image.Image, size: int, fit: str) -> Image.Image:
    shape, method = (size, size), Image.Resampling.BILINEAR
    if image.size == shape:
        return image
    if fit == "crop":
        return ImageOps.fit(image, shape, method)
    return ImageOps.pad(image, shape, method) if fit == "pad" else image.resize(shape, method)


def decode_all(items: Iterable[tuple[str, Read]], form: Form) -> Iterator[tuple[np.ndarray, list[bytes]]]:
    """Yields images `[b, C, H, W]` uint8 in their order, with the content of each file, a few hundred at once.

    Args:
        items: name of each image, for messages, and what reads its file.
        form: what it is made into.

    Raises:
        StreamDataError: naming images that cannot be read, after trying all of them.
    """
    wrong: list[str] = []
    shape: tuple[int, ...] | None = None

    def one(item: tuple[str, Read]) -> tuple[bytes, np.ndarray | str]:
        try:
            content = item[1]()
            return content, decode(content, form)
        except Exception as error:  # of whatever kind: a damaged file makes decoders fail anywhere
            words = re.sub(r" <_io\.\w+ object at \w+>", "", " ".join(str(error).split()))
            return b"", words or type(error).__name__

    remaining = iter(items)
    with warnings.catch_warnings(), ThreadPoolExecutor(min(32, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("ignore")  # what Pillow says of large images and odd files
        while part := list(itertools.islice(remaining, AT_ONCE)):
            images, contents = [], []
            for (name, _), (content, found) in zip(part, pool.map(one, part), strict=True):
                if isinstance(found, np.ndarray) and shape not in (None, found.shape):
                    found = f"has {_text(found.shape)}, and others have {_text(shape or ())}: name a `size` for all"
                if isinstance(found, str):
                    wrong.append(found if name in found else f"{name}: {found}")
                    continue
                shape = found.shape
                images.append(found)
                contents.append(content)
            if not wrong:
                yield np.stack(images), contents
    if wrong:
        more = f"; and {len(wrong) - TOLD} more" if len(wrong) > TOLD else ""
        count = "an image" if len(wrong) == 1 else f"{len(wrong)} images"
        raise StreamDataError(f"{count} cannot be used: {'; '.join(itertools.islice(wrong, TOLD))}{more}")


def _text(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape[1:])) + " pixels"
