"""`pg19`: language modelling over the bytes of books published before 1919 (Rae et al. 2020), an experience a period.

As DeepMind publishes it: `metadata.csv` (number, title, year, address of each book) and `train/`, `validation/` and
`test/` with a file `NUMBER.txt` for each book. It is looked for in `data_dir`, or in the user's cache if none is given;
just as many books as are asked for are downloaded into the same folder.
"""

from __future__ import annotations

import csv
import http.client
import io
import json
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from streams.errors import StreamDataError
from streams.files import named_path, read_data
from streams.options import DATA_DIR_HELP, blur_option, count_option

if TYPE_CHECKING:
    from streams.corpus import Domain
    from streams.stream import Stream

BUCKET = "deepmind-gutenberg"
SERVER = "https://storage.googleapis.com"
SPLITS = ("train", "validation", "test")
METADATA = "metadata.csv"
LARGEST = 1 << 28  # bytes of a file; those published have a tenth of it at most
TIMEOUT_S = 30.0


@dataclass
class PG19Options:
    """Books by period."""

    experiences: int = count_option(3, "number of periods with equally many books each, in order of publication")
    books: int = count_option(12, "training books over all periods; validation and test each have a quarter as many")
    length: int = count_option(512, "bytes per window")
    train: int = count_option(1000, "maximum training windows per experience")
    validation: int = count_option(100, "maximum validation windows per experience; 0: no validation stream", minimum=0)
    test: int = count_option(100, "maximum test windows per experience")
    blur: float = blur_option()
    data_dir: str | None = field(default=None, metadata={"help": DATA_DIR_HELP})


def build_pg19(options: PG19Options, *, seed: int) -> Stream:
    """Builds the stream.

    Raises:
        StreamDataError: the books are not there and cannot be downloaded, or are too few or too short.
    """
    from streams.corpus import build_byte_stream

    source, root, books = find_books(options)
    years = read_years(root / METADATA)
    return build_byte_stream("pg19", periods(root, books, years, options.experiences), options, source, seed=seed)


def wanted(options: PG19Options) -> dict[str, int]:
    """Returns how many books of each split are asked for."""
    few = max(options.experiences, options.books // 4)
    return {"train": options.books, "validation": few if options.validation else 0, "test": few}


def find_books(options: PG19Options) -> tuple[str, Path, dict[str, list[int]]]:
    """Returns where the books were found, their folder, and the numbers of those that are used, by split.

    Raises:
        StreamDataError: they are not there and cannot be downloaded.
    """
    from streams.fashion_mnist import cache_folder

    counts = wanted(options)
    if options.books < options.experiences:
        raise StreamDataError(f"books={options.books}: must be at least one per period ({options.experiences} periods)")
    folder = named_path(options.data_dir, "data_dir") if options.data_dir else None
    root = folder or cache_folder() / "pg19"
    if found := _books_in(root, counts):
        return "stream.data_dir" if folder else "download", root, found
    try:
        download(root, counts)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        needed = ", ".join(f"{count} books in {split}/" for split, count in counts.items() if count)
        raise StreamDataError(
            f"PG-19 was not found; two ways to provide it: set stream.data_dir to a folder with {METADATA} and {needed}"
            f"{f' (not all in {folder})' if folder else ''}, or go online to download them (tried: {reason})"
        ) from error
    if not (found := _books_in(root, counts)):
        raise StreamDataError(f"PG-19: the download left too few books in {root}")
    return "download", root, found


def _books_in(root: Path, counts: dict[str, int]) -> dict[str, list[int]] | None:
    """Returns the first books of each split by number, or None if some lack.

    Raises:
        StreamDataError: what has the name of a book is none.
    """
    if not (root / METADATA).is_file():
        return None
    found = {}
    for split, count in counts.items():
        files = {int(file.stem): file for file in (root / split).glob("*.txt") if file.stem.isdecimal()}
        for file in files.values():
            if not file.is_file():
                raise StreamDataError(f"{file}: is not a regular file")
        numbers = sorted(files)
        if len(numbers) < count:
            return None
        found[split] = numbers[:count]
    return found


def read_years(path: Path) -> dict[int, int]:
    """Returns the year of publication of each book.

    Raises:
        StreamDataError: the file is not as published.
    """
    years = {}
    try:
        for number, _title, year, *_ in csv.reader(io.StringIO(read_data(path, LARGEST).decode("utf-8"), newline="")):
            years[int(number)] = int(year)
    except (ValueError, csv.Error) as error:
        raise StreamDataError(f"{path}: is not PG-19's list of number, title, year, URL: {error}") from error
    return years


def periods(root: Path, books: dict[str, list[int]], years: dict[int, int], count: int) -> list[Domain]:
    """Returns the books of each split in the order of publication, cut into as many periods.

    Raises:
        StreamDataError: a book without a year.
    """
    import hashlib

    import numpy as np

    from streams.corpus import Domain

    for number in (number for split in books.values() for number in split):
        if number not in years:
            raise StreamDataError(f"{root / METADATA}: has no entry for book {number}")
    parts = {
        split: [part.tolist() for part in np.array_split(sorted(numbers, key=lambda n: (years[n], n)), count)]
        for split, numbers in books.items()
    }
    domains = []
    for period in range(count):
        splits = {
            split: b"\n\n".join(read_data(root / split / f"{int(number)}.txt", LARGEST) for number in found[period])
            for split, found in parts.items()
        }
        mine = [years[int(number)] for number in parts["train"][period]]
        digest = hashlib.sha256(b"".join(splits[split] for split in SPLITS)).hexdigest()
        files = sum(len(found[period]) for found in parts.values())
        domains.append(Domain(f"period {period + 1}: {min(mine)}-{max(mine)}", splits, digest, files))
    return domains


def download(root: Path, counts: dict[str, int], server: str = SERVER) -> None:
    """Downloads the list of books, and the first books of each split by name, that are not there yet.

    Args:
        root: folder to download into.
        counts: books of each split.
        server: of Google's storage interface.

    Raises:
        OSError, ValueError, http.client.HTTPException: the network's.
    """

    def fetch(name: str, target: Path) -> None:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.part")
            temporary.write_bytes(_get(f"{server}/{BUCKET}/{urllib.parse.quote(name)}"))
            temporary.replace(target)

    fetch(METADATA, root / METADATA)
    for split, count in counts.items():
        if count:
            query = urllib.parse.urlencode({"prefix": f"{split}/", "fields": "items(name)", "maxResults": count + 1})
            listing = json.loads(_get(f"{server}/storage/v1/b/{BUCKET}/o?{query}"))
            names = [item["name"] for item in listing["items"] if item["name"].endswith(".txt")]
            for name in names[:count]:
                fetch(name, root / split / Path(name).name)


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        return answer.read()
