"""What a stream looks like: sizes and balance as a table, examples of texts, images as a contact sheet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from torch import Tensor
from torch.nn import functional

from cl_ovq.errors import UserError
from cl_ovq.metric_names import evenly
from cl_ovq.report.table import Column, Table
from streams import SequenceSamples, TensorSamples, rows_of
from streams.text_samples import TextSamples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from streams import Stream

SHOWN = 10  # images of an experience on a contact sheet
TILE = 64  # pixels of an image's side there, at most
EXPERIENCES = 20  # of a table or a contact sheet
EXAMPLES = 5  # experiences of which a sequence is printed
CLASSES = 10  # that are counted one by one
VECTORS = 1000  # of which the range of values is told
CHARACTERS = 400  # of a decoded example
TEXTS = 4  # of an experience that are printed


def print_stream(stream: Stream, console: Console, output: Path) -> None:
    """Print a stream, and draw its images where it has any.

    Args:
        stream: any stream.
        console: where it is printed.
        output: file of the contact sheet; its folder is made.

    Raises:
        UserError: the file cannot be written.
    """
    console.print(stream_table(stream))
    console.print(shape_of(stream))
    if isinstance(stream.samples, SequenceSamples):
        experiences = list(stream.benchmark.streams["train"])
        for number in evenly(len(experiences), EXAMPLES):
            text = stream.samples.decode(int(rows_of(experiences[number - 1].dataset)[0]))
            console.print(f"\n[bold]{escape(stream.class_names[number - 1])}[/], a training sequence:")
            console.print(shortened(text), markup=False, highlight=False)
        return
    if isinstance(stream.samples, TextSamples):
        print_texts(stream, stream.samples, console)
        return
    if len(_sample_shape(stream)) == 1:
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(stream).savefig(output, dpi=120)
    except OSError as error:
        raise UserError(f"output: cannot write {output}: {error.strerror}") from error
    console.print(f"contact sheet: {output}", soft_wrap=True, markup=False)


def print_texts(stream: Stream, samples: TextSamples, console: Console) -> None:
    """Print a few training texts of some experiences, of each class in turn."""
    experiences = list(stream.benchmark.streams["train"])
    for number in evenly(len(experiences), EXAMPLES):
        console.print(f"\n[bold]experience {number}[/], training texts:")
        rows = one_of_each(rows_of(experiences[number - 1].dataset), samples.targets)[:TEXTS]
        for row, text in zip(rows.tolist(), samples.texts(rows), strict=True):
            name = class_name(stream, number - 1, int(samples.targets[row]))
            console.print(f"{name}: {shortened(' '.join(text.split()))}", markup=False, highlight=False)


def shortened(text: str) -> str:
    """Return the beginning of a text."""
    return text[:CHARACTERS] + (" ..." if len(text) > CHARACTERS else "")


def class_name(stream: Stream, experience: int, label: int) -> str:
    """Return the name of a class, which a label stands for in an experience, numbered from zero."""
    labels = dict(zip(stream.classes_per_experience[experience], stream.original_classes[experience], strict=True))
    return stream.class_names[labels.get(label, label)]


def stream_table(stream: Stream) -> Table:
    """Return a row per experience: its samples in each stream, and how its training targets are distributed."""
    heading = f"{stream.name}, {stream.scenario.replace('_', '-')}"
    targets = Column("training targets", right=False)
    table = Table("experience", *stream.benchmark.streams, targets, title=heading)
    parts, names = stream.benchmark.streams["train"], stream.experience_names()
    told = stream.kind != "classes" or "domains" in stream.provenance  # classes stand beside their numbers of samples
    if len(parts) > EXPERIENCES:
        table.caption = f"{EXPERIENCES} of {len(parts)} experiences"
    for number in (shown - 1 for shown in evenly(len(parts), EXPERIENCES)):
        training = parts[number]
        sizes = [len(experiences[number].dataset) for experiences in stream.benchmark.streams.values()]
        name = f"{number + 1}: {', '.join(names[number])}" if told else f"{number + 1}"
        table.add(name, *sizes, balance(stream, number, stream.samples.targets[rows_of(training.dataset)]))
    return table


def balance(stream: Stream, experience: int, targets: Tensor) -> str:
    """Return how targets are distributed, in words: samples of each class, or how common the commonest token is."""
    if stream.kind == "classes":
        counted = sorted(Counter(targets.tolist()).items())
        named = {class_name(stream, experience, label): count for label, count in counted}
        more = [f"{len(named) - CLASSES} more classes"] if len(named) > CLASSES else []
        return ", ".join([*(f"{name}: {count}" for name, count in list(named.items())[:CLASSES]), *more])
    if stream.kind == "vectors":
        return f"{targets.shape[1]} numbers a sample, mean {targets.mean():.2f}, variance {targets.var():.3f}"
    if stream.kind == "values":
        known = targets[~targets.isnan()]
        return f"{len(known) / len(targets):.1f} a sequence, mean {known.mean():.2f}, variance {known.var():.3f}"
    known = targets[targets >= 0]
    counts = torch.bincount(known)
    used = int((counts > 0).sum())
    share = float(counts.max() / len(known))
    return f"{len(known) / len(targets):.1f} a sequence, {used} different, the commonest {share:.1%}"


def shape_of(stream: Stream) -> str:
    """Return in words what a sample is and what a model has to say of it."""
    samples = stream.samples
    if isinstance(samples, TextSamples):
        lengths = np.diff(samples.offsets)
        return (
            f"texts of {lengths.min()} to {lengths.max():,} bytes, half of them of {int(np.median(lengths))} or less; "
            f"{stream.n_classes} outputs"
        )
    if isinstance(samples, SequenceSamples):
        tokens = samples.inputs.shape[1]
        if samples.features is not None:
            return f"sequences of {tokens} tokens of {samples.features} features; a number at those that are asked for"
        return f"sequences of {tokens} tokens; {stream.n_classes} different, and as many outputs at every token"
    found = samples.gather(torch.linspace(0, len(samples) - 1, min(VECTORS, len(samples))).long())
    if found.dim() == 2:
        span = f"{found.min():.3g} to {found.max():.3g}, mean {found.mean():.3g}"
        return f"vectors of {found.shape[1]} features, values {span}; {stream.n_classes} outputs"
    values = "0 to 1" if isinstance(samples, TensorSamples) else f"{found.min():.3g} to {found.max():.3g}"
    return f"images of {' x '.join(map(str, found.shape[1:]))}, values {values}; {stream.n_classes} outputs"


def contact_sheet(stream: Stream) -> Figure:
    """Draw the first training images of each experience, a row each, class after class; of some, where they are many.

    All images are one picture, which is drawn at once, and large ones are made smaller.
    """
    from cl_ovq.evaluation.drawing import new_figure

    samples = stream.samples
    parts = list(stream.benchmark.streams["train"])
    told = evenly(len(parts), EXPERIENCES)
    channels, height, width = _sample_shape(stream)
    channels = 3 if channels >= 3 else 1  # alpha is not drawn
    scale = min(1.0, TILE / max(height, width))
    height, width = max(1, round(scale * height)), max(1, round(scale * width))
    gap = max(1, height // 16)
    sheet = torch.ones(len(told), channels, height + gap, SHOWN, width + gap)
    for row, number in enumerate(told):
        images = samples.gather(one_of_each(rows_of(parts[number - 1].dataset), samples.targets))[:, :channels]
        if scale < 1:
            images = functional.interpolate(images, size=(height, width), mode="area")
        sheet[row, :, :height, : len(images), :width] = images.permute(1, 2, 0, 3)
    picture = sheet.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)
    figure = new_figure(0.8 * SHOWN + 1, 0.8 * len(told) + 0.6)
    axes = figure.subplots()
    axes.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
    middles = [(height + gap) * row + height / 2 - 0.5 for row in range(len(told))]
    axes.set_yticks(middles, [str(number) for number in told])
    axes.set_xticks([])
    axes.set_ylabel("experience")
    axes.spines[:].set_visible(False)
    return figure


def _sample_shape(stream: Stream) -> tuple[int, ...]:
    return cast("TensorSamples", stream.samples).sample_shape  # which those of a benchmark of Avalanche's have as well


def one_of_each(rows: Tensor, targets: Tensor) -> Tensor:
    """Return up to `SHOWN` rows, taking from each class in turn."""
    by_class = [rows[targets[rows] == label] for label in targets[rows].unique()]
    chosen = [part[turn] for turn in range(SHOWN) for part in by_class if turn < len(part)]
    return torch.stack(chosen[:SHOWN])
