"""Characters in typefaces, of the fonts that Matplotlib ships: found by coverage, no two alike, rendered true."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from fontTools.pens.areaPen import AreaPen
from fontTools.ttLib import TTFont

from streams import StreamDataError, build_stream, rows_of
from streams.glyphs import SETS, GlyphOptions, load_glyphs

SHIPPED = Path(matplotlib.get_data_path(), "fonts", "ttf")
SANS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf")
OTHERS = ("DejaVuSansMono.ttf", "DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf", "STIXGeneral.ttf", "cmr10.ttf")
LETTERS = "ABCDEFGHKLMNOPRSTUVXYZ"


@pytest.fixture(scope="module")
def fonts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fonts")
    for name in (*SANS, *OTHERS):
        if not (SHIPPED / name).is_file():
            pytest.skip(f"this Matplotlib does not ship {name}")
        shutil.copy(SHIPPED / name, folder / name)
    return folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def glyphs(fonts, **changes):
    return GlyphOptions(data=str(fonts), **{"characters": LETTERS, **changes})


def test_every_typeface_gives_a_sample_of_every_character(fonts):
    for cached in (True, False, True):
        data = load_glyphs(glyphs(fonts, cache=cached, size=24))
        assert data.inputs.shape == (len(LETTERS) * 8, 1, 24, 24)
        assert data.class_names == tuple(LETTERS)
        assert data.domain_names == ("DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif", "STIXGeneral", "cmr10")
        assert np.bincount(data.targets).tolist() == [8] * len(LETTERS)
        assert np.bincount(data.domains).tolist() == [3 * 22, 22, 2 * 22, 22, 22]
        assert (
            data.files["DejaVuSans.ttf"]["sha256"]
            == hashlib.sha256((SHIPPED / "DejaVuSans.ttf").read_bytes()).hexdigest()
        )
        assert data.files["rendered"]["sha256"] == hashlib.sha256(data.inputs.tobytes()).hexdigest()


def test_an_image_shows_its_character_in_its_typeface(fonts, tmp_path):
    """The ink of each image against the area that its outline encloses, which fontTools computes from the curves."""
    (tmp_path / "three").mkdir()
    for name in ("DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "STIXGeneral.ttf"):
        shutil.copy(SHIPPED / name, tmp_path / "three" / name)
    data = load_glyphs(glyphs(tmp_path / "three", size=64))
    ink = data.inputs[:, 0].sum((1, 2)) / 255
    for number, name in enumerate(("DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "STIXGeneral.ttf")):
        font = TTFont(SHIPPED / name)
        outlines, table = font.getGlyphSet(), font.getBestCmap()
        pixel = font["head"].unitsPerEm / (1.625 * 64) * 1.75  # of 112 by 112 that are made 64 by 64
        areas = []
        for letter in LETTERS:
            pen = AreaPen(outlines)
            outlines[table[ord(letter)]].draw(pen)
            areas.append(abs(pen.value) / pixel**2)
        np.testing.assert_allclose(ink[number::3], areas, rtol=0.06)


def test_characters_lie_in_the_middle_and_whole(fonts):
    images = load_glyphs(glyphs(fonts, size=32)).inputs[:, 0] > 8
    for image in images:
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert abs(rows[0] + rows[-1] - 31) <= 2
        assert abs(columns[0] + columns[-1] - 31) <= 2
        assert rows[0] > 0


def test_nearly_the_same_typefaces_count_once(fonts, tmp_path):
    shutil.copytree(fonts, tmp_path / "twice")
    shutil.copy(fonts / "DejaVuSans.ttf", tmp_path / "twice" / "Zcopy.ttf")
    one, two = load_glyphs(glyphs(fonts)), load_glyphs(glyphs(tmp_path / "twice"))
    assert two.inputs.tobytes() == one.inputs.tobytes()
    assert len(load_glyphs(glyphs(tmp_path / "twice", difference=0.0)).inputs) == len(one.inputs) + len(LETTERS)
    assert len(load_glyphs(glyphs(fonts, difference=20.0)).inputs) < len(one.inputs)


def test_typefaces_are_found_by_what_they_have(fonts):
    """cmr10 has no Greek small letters at their places, and DejaVu has no Chinese characters."""
    wide = load_glyphs(glyphs(fonts, characters="βδεζηθAB"))
    assert "cmr10" not in wide.domain_names
    assert "DejaVu Sans" in wide.domain_names
    some = load_glyphs(glyphs(fonts, characters="ABCDEFGH亜", coverage=0.8))
    assert some.class_names == tuple("ABCDEFGH")
    with pytest.raises(StreamDataError, match=r"of 8 font files, only 0 distinct typefaces contain 98% of the 2965"):
        load_glyphs(glyphs(fonts, characters="jis1"))


def test_a_font_that_is_damaged_or_a_placeholder_is_passed_over(fonts, tmp_path):
    expected = load_glyphs(glyphs(fonts))
    shutil.copytree(fonts, tmp_path / "odd")
    (tmp_path / "odd" / "broken.ttf").write_bytes((fonts / "DejaVuSans.ttf").read_bytes()[:5000])
    (tmp_path / "odd" / "text.otf").write_text("no font")
    if (SHIPPED / "LastResortHE-Regular.ttf").is_file():  # it draws every letter as the same box
        shutil.copy(SHIPPED / "LastResortHE-Regular.ttf", tmp_path / "odd" / "LastResort.ttf")
    found = load_glyphs(glyphs(tmp_path / "odd"))
    assert found.domain_names == expected.domain_names
    assert found.inputs.tobytes() == expected.inputs.tobytes()


def test_a_draw_of_classes_is_the_same_for_every_seed_and_part_of_a_larger_one(fonts):
    few, more = load_glyphs(glyphs(fonts, classes=6)), load_glyphs(glyphs(fonts, classes=12))
    assert len(few.class_names) == 6
    assert set(few.class_names) < set(more.class_names) < set(LETTERS)
    whole = load_glyphs(glyphs(fonts))
    for label, name in enumerate(few.class_names):
        expected = whole.inputs[whole.targets == LETTERS.index(name)]
        assert few.inputs[few.targets == label].tobytes() == expected.tobytes()
    rest = load_glyphs(glyphs(fonts, classes=6, skip=6))
    assert set(few.class_names) | set(rest.class_names) == set(more.class_names)
    assert not set(few.class_names) & set(rest.class_names)
    assert set(load_glyphs(glyphs(fonts, skip=12)).class_names).isdisjoint(more.class_names)
    with pytest.raises(StreamDataError, match="classes=12 after skip=11: all typefaces have 22"):
        load_glyphs(glyphs(fonts, classes=12, skip=11))
    with pytest.raises(StreamDataError, match="skip=21: all typefaces have 22"):
        load_glyphs(glyphs(fonts, skip=21))
    with pytest.raises(StreamDataError, match="classes=23: all typefaces have 22 of the characters in common"):
        load_glyphs(glyphs(fonts, classes=23))


def test_streams_by_class_and_by_family(fonts):
    stream = build_stream("glyphs", glyphs(fonts, experiences=11), seed=0)
    assert len(stream.benchmark.streams["train"]) == 11
    assert stream.provenance["sizes"] == {"train": 5 * 22, "validation": 22, "test": 2 * 22}
    families = build_stream("glyphs", glyphs(fonts, scenario="domain_incremental"), seed=0)
    assert families.provenance["domains"][0] == ["DejaVu Sans"]
    assert families.n_classes == 22
    rows = torch.cat([rows_of(part.dataset) for part in families.benchmark.streams["test"]])
    assert (torch.bincount(families.samples.targets[rows]) > 0).all()


@pytest.mark.parametrize("scenario", ["class_incremental", "domain_incremental"])
def test_no_drawing_is_both_learned_and_asked_for(fonts, tmp_path, scenario):
    """Typefaces share drawings; here each but three has a twin that is the same in all."""
    twins = tmp_path / "twins"
    shutil.copytree(fonts, twins)
    for name in sorted(path.name for path in fonts.iterdir())[3:]:
        shutil.copy(twins / name, twins / f"twin-{name}")
    options = glyphs(twins, difference=0.0, experiences=2, validation_fraction=0.2, scenario=scenario)
    stream = build_stream("glyphs", options, seed=0)
    found = {}
    for part, experiences in stream.benchmark.streams.items():
        rows = torch.cat([rows_of(experience.dataset) for experience in experiences])
        found[part] = {image.numpy().tobytes() for image in stream.samples.gather(rows)}
        assert set(stream.samples.targets[rows].tolist()) == set(range(22))
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]


def test_the_sets_of_characters_are_the_standards():
    sizes = {name: len(make()) for name, make in SETS.items()}
    assert sizes == {
        "latin": 62,
        "greek": 49,
        "cyrillic": 64,
        "kana": 176,
        "hangul": 2350,
        "jis1": 2965,
        "jis2": 3390,
        "gb1": 3755,
    }
    assert all(len(set(make())) == len(make()) for make in SETS.values())
    assert SETS["jis1"]()[0] == "亜"
    assert SETS["jis1"]()[-1] == "腕"
    assert SETS["hangul"]()[:2] == "가각"


def test_what_is_wrong_is_told_in_a_line(tmp_path, fonts):
    for options, line in (
        (glyphs(tmp_path / "none"), "data: '.*none' is not a folder of fonts"),
        (glyphs(tmp_path), "data: of 0 font files, only 0 distinct typefaces contain 98% of the 22 characters"),
        (glyphs(fonts, characters="A"), "characters: 'A' is neither at least two characters nor a set: latin, greek"),
    ):
        with pytest.raises(StreamDataError, match=line) as error:
            load_glyphs(options)
        assert "\n" not in str(error.value)


# Of the packages that docs/data.md names and continuous integration installs.
DEBIAN = ("ipaex", "vlgothic", "kiloji", "kouzan", "aoyagi", "dotgothic", "sawarabi", "motoya", "konatu", "reggae")


def test_installed_typefaces_have_the_characters_of_japan(tmp_path):
    """Sixty characters are told apart by their nearest mean over other typefaces."""
    for path in Path("/usr/share/fonts").rglob("*.[ot]t[cf]"):
        if any(name in str(path).lower() for name in DEBIAN):
            (tmp_path / path.name).symlink_to(path)
    try:
        data = load_glyphs(GlyphOptions(data=str(tmp_path), characters=SETS["jis1"]()[:60], cache=False))
    except StreamDataError as error:
        pytest.skip(f"the fonts of docs/data.md are not installed: {error}")
    each = len(data.targets) // len(data.class_names)
    if each < 8:
        pytest.skip(f"only {each} installed typefaces of docs/data.md have these characters")
    assert len(data.class_names) >= 58
    images = np.asarray(data.inputs, dtype=np.float64).reshape(len(data.class_names), each, -1)
    means = images[:, ::2].mean(1)
    asked = images[:, 1::2].reshape(-1, images.shape[-1])
    nearest = ((asked[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == np.repeat(np.arange(len(means)), each // 2)).mean() > 0.5
