"""`glyphs`: characters rendered in typefaces: thousands of classes that need no download.

A class is a character, a sample a typeface, a domain a family of typefaces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import StreamDataError
from streams.files import named_path, sha256_of, states_of
from streams.own_options import CacheOptions, CutOptions
from streams.shared_data import providable

if TYPE_CHECKING:
    import numpy as np

    from streams.cache import Sink
    from streams.split import LabelledData
    from streams.stream import Stream

FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")


def _rows(encoding: str, first: int, last: int) -> str:
    """Returns the characters of some rows of a double-byte character set, in its order."""
    pairs = (bytes([row, cell]) for row in range(first, last + 1) for cell in range(0xA1, 0xFF))
    return "".join(pair.decode(encoding, errors="ignore") for pair in pairs)


def _span(*spans: str) -> str:
    """Returns the letters of ranges such as `a-z`."""
    points = (point for span in spans for point in range(ord(span[0]), ord(span[2]) + 1))
    return "".join(letter for letter in map(chr, points) if letter.isalnum())


SETS: dict[str, Callable[[], str]] = {
    "latin": lambda: _span("A-Z", "a-z", "0-9"),
    "greek": lambda: _span("Α-Ω", "α-ω"),  # noqa: RUF001 - these are Greek
    "cyrillic": lambda: _span("А-я"),  # noqa: RUF001 - these are Cyrillic
    "kana": lambda: _span("ぁ-ゖ", "ァ-ヺ"),
    "hangul": lambda: _rows("euc_kr", 0xB0, 0xC8),  # KS X 1001
    "jis1": lambda: _rows("euc_jp", 0xB0, 0xCF),  # JIS X 0208, first level
    "jis2": lambda: _rows("euc_jp", 0xD0, 0xF4),
    "gb1": lambda: _rows("gb2312", 0xB0, 0xD7),  # GB 2312, first level
}


@dataclass
class GlyphForm:
    """Which characters are rendered in which typefaces, and how."""

    data: str | None = field(
        default=None,
        metadata={"help": "folder of font files (.ttf, .otf, .ttc); null: the installed fonts"},
    )
    characters: str = field(
        default="jis1",
        metadata={
            "help": f"the characters themselves, or a set: {', '.join(SETS)} (jis1: 2965 Chinese characters as used in "
            "Japan; hangul: 2350; gb1: 3755)"
        },
    )
    classes: int | None = field(
        default=None,
        metadata={
            "help": "number of characters to use as classes, drawn identically for every seed; all if null",
            "minimum": 2,
            "maximum": 100_000,
        },
    )
    skip: int = field(
        default=0,
        metadata={
            "help": "characters of the draw to skip before taking classes: skip=2400 and classes=2400 share "
            "none, e.g. to pretrain an encoder on other characters",
            "minimum": 0,
            "maximum": 100_000,
        },
    )
    size: int = field(default=16, metadata={"help": "image height and width in pixels", "minimum": 8, "maximum": 512})
    coverage: float = field(
        default=0.98,
        metadata={
            "help": "fraction of the characters that a typeface must contain; characters missing in a "
            "remaining typeface are dropped",
            "minimum": 0.1,
            "maximum": 1.0,
        },
    )
    difference: float = field(
        default=4.0,
        metadata={
            "help": "mean pixel difference (0 to 255) below which two typefaces count as duplicates, and one "
            "is dropped",
            "minimum": 0.0,
            "maximum": 255.0,
        },
    )


@dataclass
class GlyphOptions(CacheOptions, CutOptions, GlyphForm):
    """Characters in typefaces."""


@dataclass(frozen=True)
class GlyphSource:
    """What decides the samples of the stream: hashable, to be handed over by it (`streams.shared_data`)."""

    data: str | None
    characters: str
    size: int
    coverage: float
    difference: float
    cache: bool
    cache_dir: str | None


def load_glyphs(options: GlyphOptions) -> LabelledData:
    """Renders the characters that a stream's options ask for.

    Raises:
        StreamDataError: too few typefaces have the characters, or there are fewer of these than classes.
    """
    source = GlyphSource(
        options.data,
        "".join(dict.fromkeys(SETS[options.characters]() if options.characters in SETS else options.characters)),
        options.size,
        options.coverage,
        options.difference,
        options.cache,
        options.cache_dir,
    )
    if len(source.characters) < 2:
        raise StreamDataError(
            f"characters: '{options.characters}' is neither at least two characters nor a set: {', '.join(SETS)}"
        )
    data = read_glyphs(source)
    if options.classes is not None or options.skip:
        data = _drawn(data, options.skip, options.classes)
    return replace(data, test_fraction=options.test_fraction, contents=_contents(data))


def _contents(data: LabelledData) -> np.ndarray:
    """Returns the content `[n]` of each image as a number: typefaces share the drawings of many characters."""
    import numpy as np

    seen: dict[bytes, int] = {}
    digests = (blake2b(image.tobytes(), digest_size=16).digest() for image in data.inputs)
    return np.array([seen.setdefault(digest, len(seen)) for digest in digests])


@providable
def read_glyphs(source: GlyphSource) -> LabelledData:
    """Renders characters `[n, 1, size, size]`, all typefaces of the first, then of the second, and so on.

    Raises:
        StreamDataError: too few typefaces have them.
    """
    import PIL.features

    from streams.cache import cache_root, cached, digest_of, in_memory
    from streams.typefaces import font_files

    if source.data is not None:
        folders = [named_path(source.data, "data")]
        if not folders[0].is_dir():
            raise StreamDataError(f"data: '{source.data}' is not a folder of fonts")
    else:
        folders = [Path(folder).expanduser() for folder in FOLDERS]
    files = font_files(folders)

    def make(sink: Sink) -> LabelledData:
        return _rendered(source, files, sink)

    if not source.cache:
        return in_memory(make)
    versions = PIL.__version__, PIL.features.version("freetype2")
    facts = source.characters, source.size, source.coverage, source.difference, versions
    return cached(digest_of("glyphs", facts, states_of(files)), cache_root(source.cache_dir), make)


def _rendered(source: GlyphSource, files: list[Path], sink: Sink) -> LabelledData:
    """Writes all images, and returns what else there is of them."""
    import numpy as np

    from streams.split import LabelledData
    from streams.typefaces import render_all

    found = render_all(
        files, source.characters, size=source.size, coverage=source.coverage, difference=source.difference
    )
    sink.write(found.images.reshape(-1, 1, source.size, source.size))
    families = sorted({face.family for face in found.typefaces})
    domains = np.array([families.index(face.family) for face in found.typefaces])
    names = {str(face.path): face.path.name for face in found.typefaces}
    return LabelledData(
        dataset="glyphs",
        source="installed fonts" if source.data is None else "stream.data",
        files={
            "rendered": {"sha256": sink.sha256},
            **{name: {"sha256": sha256_of(Path(path))} for path, name in names.items()},
        },
        inputs=np.empty(0),
        targets=np.repeat(np.arange(len(found.characters)), len(found.typefaces)),
        divisor=255.0,
        class_names=found.characters,
        domains=np.tile(domains, len(found.characters)),
        domain_names=tuple(families),
    )


def _drawn(data: LabelledData, skip: int, classes: int | None) -> LabelledData:
    """Returns the data set of some of its classes, drawn alike for every seed; a smaller draw is part of a larger one.

    Args:
        data: of all characters.
        skip: how many of the draw are left out first.
        classes: how many are taken then; all that are left if None.

    Raises:
        StreamDataError: it has fewer.
    """
    import numpy as np

    from streams.counter_rng import Draws

    count = len(data.class_names)
    if skip + (2 if classes is None else classes) > count:
        asked = f"skip={skip}" if classes is None else f"classes={classes}" + (f" after skip={skip}" if skip else "")
        raise StreamDataError(f"{asked}: all typefaces have {count} of the characters in common")
    chosen = np.sort(Draws("glyphs").orders(1, count)[0, skip:][:classes])
    each = len(data.targets) // count
    rows = (chosen[:, None] * each + np.arange(each)).ravel()
    assert data.domains is not None
    return replace(
        data,
        inputs=data.inputs[rows],
        targets=np.repeat(np.arange(len(chosen)), each),
        class_names=tuple(data.class_names[label] for label in chosen),
        domains=data.domains[rows],
    )


def build_glyphs(options: GlyphOptions, *, seed: int) -> Stream:
    """Builds the stream.

    Raises:
        StreamDataError: too few typefaces have the characters, or an option does not fit them.
    """
    from streams.own_data import build_own_stream

    return build_own_stream("glyphs", load_glyphs(options), options, seed=seed)
