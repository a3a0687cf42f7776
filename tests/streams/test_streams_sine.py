"""Episodes of sine waves: frequency, amplitude and phases are found again in the numbers."""

import numpy as np
import pytest
import torch

from streams import STREAMS, StreamDataError, build_stream, rows_of
from streams.sine import SineOptions

STEP = 10 / 49  # of time, from a point to the next


def build(seed=0, **changes):
    return build_stream("sine", SineOptions(**{"tasks": 6, "noise": 0.0, **changes}), seed=seed)


def found(wave):
    """Frequency, amplitude and phase of a wave: a point's neighbours add up to 2 cos(2 pi f step) times it."""
    wave = wave.astype(np.float64)
    ratio = (wave[1:-1] @ (wave[2:] + wave[:-2])) / (wave[1:-1] @ wave[1:-1])
    frequency = np.arccos(ratio / 2) / (2 * np.pi * STEP)
    turns = 2 * np.pi * frequency * STEP * np.arange(len(wave))
    (sine, cosine), *_ = np.linalg.lstsq(np.stack([np.sin(turns), np.cos(turns)], 1), wave, rcond=None)
    return frequency, np.hypot(sine, cosine), np.arctan2(cosine, sine) % (2 * np.pi)


def waves(stream, part):
    """`[experiences, samples, 2, 3]`: frequency, amplitude and phase of every input and target."""
    samples, listed = stream.samples, []
    for experience in stream.benchmark.streams[part]:
        rows = rows_of(experience.dataset)
        pairs = zip(samples.gather(rows).numpy(), samples.targets[rows].numpy(), strict=True)
        listed.append([[found(x), found(y)] for x, y in pairs])
    return np.array(listed)


def test_a_task_is_a_frequency_and_two_phases_and_a_sample_an_amplitude():
    stream = build()
    assert (stream.kind, stream.n_classes, stream.samples.sample_shape) == ("vectors", 50, (50,))
    every = np.concatenate([waves(stream, part) for part in ("train", "validation", "test")], 1)
    assert every.shape == (6, 15, 2, 3)
    frequency, amplitude, phase = np.moveaxis(every, -1, 0)
    np.testing.assert_allclose(frequency, np.broadcast_to(frequency[:, :1, :1], frequency.shape), atol=1e-4)
    np.testing.assert_allclose(amplitude[..., 0], amplitude[..., 1], atol=1e-4)
    away = np.exp(1j * phase) / np.exp(1j * phase[:, :1])  # on the circle
    np.testing.assert_allclose(away, np.ones_like(away), atol=1e-2)
    assert len(np.unique(amplitude[..., 0].round(5))) == 6 * 15  # no sample twice
    assert len(np.unique(frequency[:, 0, 0].round(5))) == 6
    assert len(np.unique(phase[:, 0].round(3))) == 12


def test_what_is_drawn_is_uniform_over_its_range():
    stream = build(tasks=2000, samples=1, validation=0, questions=1)
    drawn = waves(stream, "train")[:, 0]
    assert "validation" not in stream.benchmark.streams
    for numbers, low, high in (
        (drawn[:, 0, 0], 0.1, 1.1),
        (drawn[:, 0, 1], 0.5, 1.5),
        (drawn[:, 0, 2], 0, 2 * np.pi),
        (drawn[:, 1, 2], 0, 2 * np.pi),
    ):
        ranks = (np.arange(2000) + 0.5) / 2000  # Kolmogorov and Smirnov: beyond 0.043 with a chance of a thousandth
        share = np.sort((numbers - low) / (high - low))
        assert np.abs(share - ranks).max() < 0.043
        assert -1e-3 < share[0] < 0.006  # the ends of the range: missed by more once in e^12
        assert 0.994 < share[-1] < 1.001
    both = np.stack([drawn[:, 0, 0], drawn[:, 0, 1], drawn[:, 0, 2], drawn[:, 1, 2]])
    assert np.abs(np.corrcoef(both) - np.eye(4)).max() < 0.08


def test_inputs_are_noisy_and_targets_are_not():
    plain, noisy = build(tasks=40), build(tasks=40, noise=0.3)
    assert torch.equal(plain.samples.targets, noisy.samples.targets)
    noise = ((noisy.samples.inputs - plain.samples.inputs) / 0.3).flatten().double().numpy()
    assert abs(noise.mean()) < 0.03
    assert noise.std() == pytest.approx(1, abs=0.03)
    assert (np.abs(noise) > 2).mean() == pytest.approx(0.0455, abs=0.008)


def test_a_longer_episode_begins_with_the_shorter_one():
    short, long = build(seed=3), build(seed=3, tasks=9)
    for part in ("train", "validation", "test"):
        for one, other in zip(short.benchmark.streams[part], long.benchmark.streams[part], strict=False):
            mine, theirs = rows_of(one.dataset), rows_of(other.dataset)
            assert len(mine) == 5
            assert torch.equal(short.samples.gather(mine), long.samples.gather(theirs))
            assert torch.equal(short.samples.targets[mine], long.samples.targets[theirs])
    assert build(seed=3).provenance == short.provenance
    assert not torch.equal(build(seed=4).samples.targets, short.samples.targets)


def test_samples_are_read_one_by_one_as_in_batches():
    samples = build().samples
    x, y = zip(*(samples[row] for row in (4, 2)), strict=True)
    assert torch.equal(torch.stack(x), samples.gather(torch.tensor([4, 2])))
    assert torch.equal(torch.stack(y), samples.targets[[4, 2]])
    assert samples.sample_bytes == 2 * 50 * 4


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tasks": 0}, "tasks=0: must be at least 1"),
        ({"noise": float("nan")}, "noise=nan: must be at least 0"),
        ({"tasks": 1, "blur": 0.5}, "blur=0.5: a single experience has no boundaries"),
    ],
)
def test_mistakes(options, line):
    with pytest.raises(StreamDataError, match=line):
        build(**options)


def test_the_registry_knows_the_kind():
    assert STREAMS["sine"].kind == build().kind
