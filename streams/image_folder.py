"""`image_folder`: images of the user's own, a folder a class, or a folder a domain with a folder a class in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from streams.class_folders import parts_of
from streams.errors import StreamDataError
from streams.files import named_path, read_data, sha256_of, states_of
from streams.own_options import CacheOptions, CutOptions
from streams.shared_data import providable

if TYPE_CHECKING:
    from pathlib import Path

    from streams.cache import Sink
    from streams.class_folders import SampleFile
    from streams.image_files import Form
    from streams.split import LabelledData
    from streams.stream import Stream


@dataclass
class ImageForm:
    """What every image is made into."""

    size: int | None = field(
        default=32,
        metadata={
            "help": "height and width that images are resized to; null: no resizing; all images must have "
            "the same size",
            "minimum": 1,
            "maximum": 4096,
        },
    )
    channels: int = field(
        default=3,
        metadata={"help": "1: greyscale; 2: greyscale and alpha; 3: RGB; 4: RGB and alpha", "minimum": 1, "maximum": 4},
    )
    fit: str = field(
        default="crop",
        metadata={
            "help": "how a non-square image becomes square: crop its centre, pad it with black, or stretch it",
            "choices": ("crop", "pad", "stretch"),
        },
    )


@dataclass
class ImagePlaces:
    """Where images are."""

    data: str | None = field(
        default=None,
        metadata={
            "help": "image folder, class/ or domain/class/, optionally inside train/ and test/; or a list "
            "with one path,label[,domain] per line; required"
        },
    )
    test_data: str | None = field(
        default=None,
        metadata={"help": "test image folder or list, in the same layout; a fraction of data is held out if null"},
    )


@dataclass
class ImageFolderOptions(CacheOptions, CutOptions, ImageForm, ImagePlaces):
    """Images of the user's own."""


@dataclass(frozen=True)
class ImageSource:
    """What decides the samples of the stream: hashable, to be handed over by it (`streams.shared_data`)."""

    data: str
    test_data: str | None
    form: Form
    cache: bool
    cache_dir: str | None


def load_image_folder(options: ImageFolderOptions) -> LabelledData:
    """Reads the data set that a stream's options ask for.

    Raises:
        StreamDataError: naming the folder or image that cannot be read.
    """
    from streams.image_files import Form

    if options.data is None:
        raise StreamDataError("data: set an image folder: class/ or domain/class/, or a list of path,label[,domain]")
    form = Form(options.size, options.channels, options.fit)
    source = ImageSource(options.data, options.test_data, form, options.cache, options.cache_dir)
    return replace(read_image_folder(source), test_fraction=options.test_fraction)


@providable
def read_image_folder(source: ImageSource) -> LabelledData:
    """Reads images: those of the test folder last.

    Raises:
        StreamDataError: naming the folder or image that cannot be read.
    """
    import PIL

    from streams.cache import cache_root, cached, digest_of, in_memory

    parts = parts_of(source.data, source.test_data)
    found = [(option, root, _found(root, option)) for option, root in parts]
    files = [file for *_, part in found for file in part]
    if len({file.domain is None for file in files}) > 1:
        raise StreamDataError("test_data: training and test images must both be in domain/class/, or both in class/")
    lists = [root for _, root, _ in found if root.is_file()]

    def make(sink: Sink) -> LabelledData:
        return _decoded(
            named_path(source.data, "data").name,
            files,
            lists,
            source.form,
            sink,
            len(found[1][2]) if len(found) > 1 else 0,
        )

    if not source.cache:
        return in_memory(make)
    form = source.form
    nbytes = None if form.size is None else len(files) * form.channels * form.size**2
    facts = (form.size, form.channels, form.fit, PIL.__version__, [len(part) for *_, part in found])
    states = states_of([*(file.path for file in files), *lists])
    return cached(digest_of("images", facts, states), cache_root(source.cache_dir), make, nbytes=nbytes)


def _found(root: Path, option: str) -> list[SampleFile]:
    from streams.image_files import find_images  # imports Pillow

    try:
        return find_images(root, option)
    except OSError as error:
        raise StreamDataError(f"{option}: '{error.filename or root}' cannot be read ({error.strerror})") from error


def _decoded(
    name: str, files: Sequence[SampleFile], lists: Sequence[Path], form: Form, sink: Sink, n_test: int
) -> LabelledData:
    """Writes all images, and returns what else there is of them."""
    import numpy as np

    from streams.image_files import decode_all
    from streams.labels import Names
    from streams.progress import progress
    from streams.split import LabelledData

    contents = hashlib.sha256()
    names = iter(files)
    with progress("decoding images", len(files)) as advance:
        for images, read in decode_all(((file.name, partial(read_data, file.path)) for file in files), form):
            sink.write(images)
            for content in read:
                contents.update(next(names).name.encode() + b"\0" + hashlib.sha256(content).digest())
            advance(len(images))
    labels, domains = (Names(what, verbatim=not lists) for what in ("label", "domain"))
    labels.add([file.label for file in files], "labels")
    targets, class_names = labels.numbered()
    has_domains = files[0].domain is not None
    if has_domains:
        domains.add([file.domain for file in files], "domains")
    numbers, domain_names = domains.numbered() if has_domains else (None, ())
    return LabelledData(
        dataset=name,
        source="stream.data",
        files={
            "images": {"sha256": contents.hexdigest(), "decoded_sha256": sink.sha256},
            **{path.name: {"sha256": sha256_of(path)} for path in lists},
        },
        inputs=np.empty(0),
        targets=targets,
        divisor=255.0,
        class_names=class_names,
        n_test=n_test,
        domains=numbers,
        domain_names=domain_names,
    )


def build_image_folder(options: ImageFolderOptions, *, seed: int) -> Stream:
    """Builds the stream.

    Raises:
        StreamDataError: naming folder, image or class of what is wrong.
    """
    from streams.own_data import build_own_stream

    return build_own_stream("image_folder", load_image_folder(options), options, seed=seed)
