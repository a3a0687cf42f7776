"""Finds typefaces on disk and renders characters in them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from streams.errors import StreamDataError
from streams.progress import progress

SUFFIXES = frozenset((".otc", ".otf", ".ttc", ".ttf"))
COMPARED = 300  # characters by which two typefaces are told apart
FEWEST = 3  # typefaces, so that training, validation and test can each get one


@dataclass(frozen=True)
class Typeface:
    """A typeface of a font file.

    Attributes:
        path: of the file.
        index: of the typeface in it.
        family: to which it belongs.
        style: its name in the family.
    """

    path: Path
    index: int
    family: str
    style: str


@dataclass(frozen=True)
class Glyphs:
    """Characters in typefaces.

    Attributes:
        images: `[characters, typefaces, size, size]` uint8, white on black.
        characters: those that all the typefaces have.
        typefaces: no two of them alike.
    """

    images: np.ndarray
    characters: tuple[str, ...]
    typefaces: tuple[Typeface, ...]


def font_files(folders: Sequence[Path]) -> list[Path]:
    """Returns all font files below folders, by name."""
    found = (path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted({path.resolve() for path in found if path.is_file()}, key=lambda path: (path.name, str(path)))


def render_all(
    files: Sequence[Path], characters: Sequence[str], *, size: int, coverage: float, difference: float
) -> Glyphs:
    """Renders characters in every typeface that has enough of them, and is not nearly another one.

    Args:
        files: font files.
        characters: different ones.
        size: height and width of an image.
        coverage: share of the characters that a typeface must have. Of the characters those are kept that all
            typefaces have.
        difference: of two typefaces, the least mean difference of their pixels, 0 to 255.

    Raises:
        StreamDataError: too few typefaces, or no characters that they have in common.
    """
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it tells every oddity of every table
    kept: list[tuple[Typeface, np.ndarray]] = []
    with progress("rendering, font files", len(files)) as advance:
        for path in files:
            for face, known in _typefaces(path, characters):
                if known.mean() >= coverage:
                    images = _render(face, characters, known, size)
                    enough = images.any((1, 2)).mean() >= coverage and _legible(images)
                    if enough and all(_apart(images, other, difference) for _, other in kept):
                        kept.append((face, images))
            advance(1)
    if len(kept) < FEWEST:
        names = ", ".join(f"{face.family} {face.style}" for face, _ in kept) or "none"
        raise StreamDataError(
            f"data: of {len(files)} font files, only {len(kept)} distinct typefaces contain {coverage:.0%} of the "
            f"{len(characters)} characters ({names}), but at least {FEWEST} are needed: install more (Debian: "
            "`apt-get install "
            "fonts-NAME`), set a folder of fonts, or choose other characters"
        )
    images = np.stack([images for _, images in kept], axis=1)
    common: np.ndarray = (images.max((2, 3)) > 0).min(1)
    if not common.any():
        raise StreamDataError("characters: none is in all typefaces: raise coverage")
    shared = tuple(character for character, there in zip(characters, common.tolist(), strict=True) if there)
    return Glyphs(images[common], shared, tuple(face for face, _ in kept))


def _typefaces(path: Path, characters: Sequence[str]) -> Iterator[tuple[Typeface, np.ndarray]]:
    """Yields the typefaces of a font file, and which characters each knows; none of a file that is damaged."""
    from fontTools.ttLib import TTFont

    index, count = 0, 1
    while index < count:
        try:
            with TTFont(path, fontNumber=index, lazy=True) as font:
                count = getattr(font.reader, "numFonts", None) or count
                table = font.getBestCmap() or {}
            family, style = ImageFont.truetype(str(path), 16, index=index).getname()
        except Exception:  # of whatever kind: the file is damaged, or of a kind that is not drawn
            return
        known = np.array([ord(character) in table for character in characters])
        yield Typeface(path, index, family or path.stem, style or ""), known
        index += 1


def _render(face: Typeface, characters: Sequence[str], known: np.ndarray, size: int) -> np.ndarray:
    """Returns characters as `[characters, size, size]` uint8, each in the middle; black where one is missing."""
    font = ImageFont.truetype(str(face.path), round(1.625 * size), index=face.index)
    side, half = 4 * size, round(0.875 * size)
    images = np.zeros((len(characters), size, size), dtype=np.uint8)
    for row in np.flatnonzero(known).tolist():
        canvas = Image.new("L", (side, side))
        pen = ImageDraw.Draw(canvas)
        try:
            pen.text((size, size), characters[row], font=font, fill=255)
        except OSError:  # FreeType cannot run the instructions of some glyphs
            continue
        if (ink := canvas.getbbox()) is None:
            continue
        # By the ink: what Pillow says of a text's extent has the space after it in it.
        x, y = (ink[0] + ink[2]) // 2, (ink[1] + ink[3]) // 2
        inner = canvas.crop((x - half, y - half, x + half, y + half))
        images[row] = np.asarray(inner.resize((size, size), Image.Resampling.BILINEAR))
    return images


def _legible(images: np.ndarray) -> bool:
    """Returns whether most characters look unlike all others: some fonts have one placeholder for all."""
    return len(np.unique(images.reshape(len(images), -1), axis=0)) > len(images) / 2


def _apart(images: np.ndarray, others: np.ndarray, difference: float) -> bool:
    """Returns whether two typefaces differ enough in what both have, of some characters evenly taken."""
    rows = np.unique(np.linspace(0, len(images) - 1, COMPARED).astype(int))
    rows = rows[images[rows].any((1, 2)) & others[rows].any((1, 2))]
    return not len(rows) or np.abs(images[rows].astype(np.int16) - others[rows]).mean() >= difference
