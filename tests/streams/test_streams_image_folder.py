"""Images of a user's own: of any size and mode, in folders or a list, as they are on disk; what is wrong is named."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from streams import StreamDataError, build_stream, rows_of
from streams.image_files import Form, decode
from streams.image_folder import ImageFolderOptions, load_image_folder

CLASSES = ("bird", "cat", "dog")
DOMAINS = ("photo", "sketch")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cl-ovq" / "data"


def draw(path, number, size=(8, 8), mode="RGB"):
    """Save random pixels, whose first one says the number of the image."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], len(mode)), dtype=np.uint8)
    pixels[0, 0] = number
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(path)
    return pixels


@pytest.fixture
def domains(tmp_path):
    """`domain/class/`, ten images each; the pixels by file name."""
    found = {}
    for domain in DOMAINS:
        for label in CLASSES:
            for _ in range(10):
                name = f"{domain}/{label}/{len(found)}.png"
                found[name] = draw(tmp_path / "images" / name, len(found))
    (tmp_path / "images" / "photo" / "cat" / "Thumbs.db").write_text("no image")
    (tmp_path / "images" / ".hidden").mkdir()
    draw(tmp_path / "images" / ".hidden" / "x.png", 0)
    return found


@pytest.mark.parametrize("cached", [True, False])
def test_images_are_as_they_are_on_disk(domains, tmp_path, cached):
    options = ImageFolderOptions(data=str(tmp_path / "images"), size=8, scenario="domain_incremental", cache=cached)
    for _ in range(2):  # as they are decoded, and out of the cache
        stream = build_stream("image_folder", options, seed=0)
        assert stream.samples.sample_shape == (3, 8, 8)
        assert stream.class_names == CLASSES
        assert stream.provenance["domains"] == [["photo"], ["sketch"]]
        images = stream.samples.gather(torch.arange(len(domains)))
        numbers = (images[:, 0, 0, 0] * 255).round().int().tolist()
        assert sorted(numbers) == list(range(len(domains)))
        names = {int(pixels[0, 0, 0]): name for name, pixels in domains.items()}
        for row, number in enumerate(numbers):
            domain, label, _ = names[number].split("/")
            expected = domains[names[number]].transpose(2, 0, 1).astype(np.float32) / np.float32(255)
            assert images[row].numpy().tobytes() == expected.tobytes()
            assert stream.class_names[stream.samples.targets[row]] == label
        for experience, domain in zip(stream.benchmark.streams["test"], DOMAINS, strict=True):
            rows = rows_of(experience.dataset)
            assert {names[numbers[row]].split("/")[0] for row in rows} == {domain}
            assert sorted(stream.samples.targets[rows].tolist()) == [0, 0, 1, 1, 2, 2]


def test_checksums_are_of_the_contents_and_not_of_the_place(domains, tmp_path):
    options = ImageFolderOptions(data=str(tmp_path / "images"), size=8)
    first = build_stream("image_folder", options, seed=0).provenance
    expected = hashlib.sha256()
    for name in sorted(domains):
        content = (tmp_path / "images" / name).read_bytes()
        expected.update(name.encode() + b"\0" + hashlib.sha256(content).digest())
    assert first["files"]["images"]["sha256"] == expected.hexdigest()
    (tmp_path / "images").rename(tmp_path / "moved")
    options.data = str(tmp_path / "moved")
    assert build_stream("image_folder", options, seed=0).provenance["files"] == first["files"]
    draw(tmp_path / "moved" / "photo" / "cat" / "10.png", 200)
    changed = build_stream("image_folder", options, seed=0).provenance["files"]["images"]
    assert changed["sha256"] != first["files"]["images"]["sha256"]
    assert changed["decoded_sha256"] != first["files"]["images"]["decoded_sha256"]


def test_folders_of_classes_with_training_and_test_folders(tmp_path):
    for part, count in (("train", 10), ("test", 4)):
        for number, label in enumerate(CLASSES):
            for image in range(count):
                draw(tmp_path / "x" / part / label / f"{image}.png", 100 * (part == "test") + 10 * number + image)
    whole = ImageFolderOptions(data=str(tmp_path / "x"), size=8, experiences=3)
    named = ImageFolderOptions(
        data=str(tmp_path / "x" / "train"), test_data=str(tmp_path / "x" / "test"), size=8, experiences=3
    )
    for options in (whole, named):
        stream = build_stream("image_folder", options, seed=0)
        assert stream.provenance["sizes"] == {"train": 27, "validation": 3, "test": 12}
        for name, parts in stream.benchmark.streams.items():
            for part in parts:
                first = stream.samples.gather(rows_of(part.dataset))[:, 0, 0, 0]
                assert ((first * 255).round() >= 100).all() == (name == "test")
    draw(tmp_path / "x" / "val" / "cat" / "0.png", 0)
    options = ImageFolderOptions(data=str(tmp_path / "x"), size=8, scenario="domain_incremental")
    with pytest.raises(StreamDataError, match=r"experience 3 \(domain 'val'\) has no samples in the"):
        build_stream("image_folder", options, seed=0)


def test_a_list_of_images(domains, tmp_path):
    lines = [f"images/{name},{name.split('/')[1]},{name.split('/')[0]}" for name in domains]
    for head in ("", "path,label,domain\n"):
        (tmp_path / "list.csv").write_text(head + "\n".join(lines) + "\n")
        options = ImageFolderOptions(data=str(tmp_path / "list.csv"), size=8, scenario="domain_incremental")
        stream = build_stream("image_folder", options, seed=0)
        images = stream.samples.gather(torch.arange(len(domains)))
        assert (images[:, 0, 0, 0] * 255).round().int().tolist() == list(range(len(domains)))
        assert stream.provenance["domains"] == [["photo"], ["sketch"]]
        sha256 = hashlib.sha256((tmp_path / "list.csv").read_bytes()).hexdigest()
        assert stream.provenance["files"]["list.csv"] == {"sha256": sha256}


def saved(image, name="x.png", **options):
    import io

    buffer = io.BytesIO()
    image.save(buffer, format={"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "gif": "GIF"}[name[-3:]], **options)
    return buffer.getvalue()


RGB = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
GREY = RGB[..., 0]


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (Image.fromarray(RGB), 3, RGB.transpose(2, 0, 1)),
        (Image.fromarray(GREY), 1, GREY[None]),
        (Image.fromarray(GREY), 3, np.stack([GREY] * 3)),
        (Image.fromarray(np.dstack([RGB, GREY])), 4, np.dstack([RGB, GREY]).transpose(2, 0, 1)),
        (Image.fromarray(np.dstack([RGB, GREY])), 3, RGB.transpose(2, 0, 1)),
        (Image.fromarray(GREY > 99), 1, np.where(GREY > 99, 255, 0)[None]),
        (Image.fromarray(GREY.astype(np.uint16) * 257), 1, GREY[None]),
        (Image.fromarray(GREY.astype(np.uint16) * 257), 3, np.stack([GREY] * 3)),
        (Image.fromarray(GREY).convert("P"), 1, GREY[None]),
    ],
    ids=["rgb", "grey", "grey to rgb", "rgba", "rgba to rgb", "1 bit", "16 bit", "16 bit to rgb", "palette"],
)
def test_modes(image, channels, expected):
    assert np.array_equal(decode(saved(image), Form(None, channels, "crop")), expected)


def test_a_photograph_lies_as_its_camera_says():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    found = decode(saved(Image.fromarray(RGB), exif=exif), Form(None, 3, "crop"))
    assert np.array_equal(found, np.rot90(RGB, -1).transpose(2, 0, 1))


def test_sizes():
    image = np.random.default_rng(1).integers(0, 256, (30, 60, 3), dtype=np.uint8)
    content = saved(Image.fromarray(image))
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()

    def reference(x, size):
        return torch.nn.functional.interpolate(x, size=size, mode="bilinear", antialias=True)[0].numpy()

    def differs(fit, expected):
        return np.abs(decode(content, Form(10, 3, fit)).astype(float) - expected).max()

    assert differs("stretch", reference(x, (10, 10))) <= 1
    assert differs("crop", reference(x, (10, 20))[..., 5:15]) <= 1
    padded = np.zeros((3, 10, 10))
    padded[:, 2:7] = reference(x, (5, 10))
    assert min(differs("pad", padded), differs("pad", np.roll(padded, 1, axis=1))) <= 1
    assert differs("stretch", padded) > 20


def test_unreadable_images_are_named_together(tmp_path):
    for label in CLASSES:
        for number in range(5):
            draw(tmp_path / "x" / label / f"{number}.png", number)
    whole = (tmp_path / "x" / "cat" / "0.png").read_bytes()
    (tmp_path / "x" / "cat" / "3.png").write_bytes(whole[: len(whole) // 2])
    options = ImageFolderOptions(data=str(tmp_path / "x"), experiences=3)
    with pytest.raises(StreamDataError, match=r"^an image cannot be used: cat/3.png: [^\n]+$"):
        build_stream("image_folder", options, seed=0)
    for number in range(5):
        (tmp_path / "x" / "dog" / f"{number}.png").write_text("no image")
    with pytest.raises(StreamDataError, match=r"^6 images cannot be used: cat/3.png: .*; dog/1.png: .*; and 3 more$"):
        build_stream("image_folder", options, seed=0)
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_images_of_different_sizes_need_one(tmp_path):
    for number in range(10):
        draw(tmp_path / "x" / "cat" / f"{number}.png", number, size=(8, 8 + number // 9))
    with pytest.raises(
        StreamDataError, match=r"^an image cannot be used: cat/9.png: has 9 x 8 pixels, and others have 8"
    ):
        build_stream("image_folder", ImageFolderOptions(data=str(tmp_path / "x"), size=None), seed=0)
    found = build_stream("image_folder", ImageFolderOptions(data=str(tmp_path / "x"), size=8), seed=0)
    assert found.samples.sample_shape == (3, 8, 8)


def test_what_is_wrong_with_folders_is_told_in_a_line(tmp_path):
    draw(tmp_path / "flat" / "x.png", 0)
    draw(tmp_path / "mixed" / "cat" / "x.png", 0)
    draw(tmp_path / "mixed" / "photo" / "cat" / "x.png", 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone.csv").write_text("a.png,cat\n")
    draw(tmp_path / "short" / "x.png", 0)
    (tmp_path / "short.csv").write_text("short/x.png,cat\nshort/x.png\n")
    (tmp_path / "none.csv").write_text("path,label\n")
    for name, line in (
        ("flat", r"data: images of '.*flat' must all be in class/ or all in domain/class/, but there is 'x.png'"),
        ("mixed", r"data: images of '.*mixed' must .* but there is 'cat/x.png' and 'photo/cat/x.png'"),
        ("empty", r"data: '.*empty' contains no images"),
        ("nothing", r"data: folder or list '.*nothing' not found"),
        ("gone.csv", r"gone.csv, line 1: file '.*a.png' not found"),
        ("short.csv", r"short.csv, line 2: 'short/x.png' is not path,label or"),
        ("none.csv", r"data: the list '.*none.csv' is empty"),
    ):
        with pytest.raises(StreamDataError, match=line) as error:
            build_stream("image_folder", ImageFolderOptions(data=str(tmp_path / name)), seed=0)
        assert "\n" not in str(error.value)
    with pytest.raises(StreamDataError, match=r"^data: set an image folder"):
        build_stream("image_folder", seed=0)
    draw(tmp_path / "one" / "cat" / "x.png", 0)
    with pytest.raises(StreamDataError, match=r"class 0 \('cat'\) of experience 1 has no samples in the train stream"):
        build_stream("image_folder", ImageFolderOptions(data=str(tmp_path / "one")), seed=0)


def test_a_folder_is_called_as_it_is_and_a_list_has_labels(tmp_path):
    for label in ("0.5", "1.0", "nan"):
        for number in range(4):
            draw(tmp_path / "images" / label / f"{number}.png", number)
    options = ImageFolderOptions(data=str(tmp_path / "images"), size=8)
    assert load_image_folder(options).class_names == ("0.5", "1.0", "nan")
    options.data = str(tmp_path / "list.csv")
    for labels, names in ((("1.0", "2.0"), ("1", "2")), (("1.0", "cat"), ("1.0", "cat")), (("1", "0.5"), None)):
        (tmp_path / "list.csv").write_text("".join(f"images/0.5/{i}.png,{label}\n" for i, label in enumerate(labels)))
        if names is not None:
            assert load_image_folder(options).class_names == names
            continue
        with pytest.raises(StreamDataError, match=r"^labels, row 2: 0\.5 is not a label: a class is a name or an "):
            load_image_folder(options)
