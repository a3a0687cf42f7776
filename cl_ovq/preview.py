"""What a stream looks like: sizes and balance as a table, an example in words, images as a contact sheet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cl_ovq.errors import UserError
from streams import SequenceSamples, TensorSamples, rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from streams import Stream

SHOWN = 10  # images of an experience on a contact sheet
CHARACTERS = 400  # of a decoded example


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
        for experience, name in zip(stream.benchmark.streams["train"], stream.class_names, strict=True):
            text = stream.samples.decode(int(rows_of(experience.dataset)[0]))
            shortened = text[:CHARACTERS] + (" ..." if len(text) > CHARACTERS else "")
            console.print(f"\n[bold]{name}[/], a training sequence:")
            console.print(shortened, markup=False, highlight=False)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(stream).savefig(output, dpi=120)
    except OSError as error:
        raise UserError(f"output: cannot write {output}: {error.strerror}") from error
    console.print(f"contact sheet: {output}", soft_wrap=True)


def stream_table(stream: Stream) -> Table:
    """Return a row per experience: its samples in each stream, and how its training targets are distributed."""
    table = Table(title=f"{stream.name}, {stream.scenario.replace('_', '-')}", title_justify="left")
    table.add_column("experience")
    for name in stream.benchmark.streams:
        table.add_column(name, justify="right")
    table.add_column("training targets")
    for number, training in enumerate(stream.benchmark.streams["train"]):
        sizes = [len(experiences[number].dataset) for experiences in stream.benchmark.streams.values()]
        name = f"{number + 1}" if stream.kind == "classes" else f"{number + 1}: {stream.class_names[number]}"
        targets = stream.samples.targets[rows_of(training.dataset)]
        table.add_row(name, *map(str, sizes), balance(stream, number, targets))
    return table


def balance(stream: Stream, experience: int, targets: Tensor) -> str:
    """Return how targets are distributed, in words: samples of each class, or the share of the commonest token."""
    if stream.kind == "classes":
        labels = dict(zip(stream.classes_per_experience[experience], stream.original_classes[experience], strict=True))
        samples = Counter(targets.tolist())
        named = {stream.class_names[labels.get(label, label)]: count for label, count in sorted(samples.items())}
        return ", ".join(f"{name}: {count}" for name, count in named.items())
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
    if isinstance(samples, TensorSamples):
        channels, height, width = samples.image_shape
        return f"images of {channels} x {height} x {width}, values 0 to 1; {stream.n_classes} outputs"
    assert isinstance(samples, SequenceSamples)
    tokens = samples.inputs.shape[1]
    if samples.features is not None:
        return f"sequences of {tokens} tokens of {samples.features} features; a number at those that are asked for"
    return f"sequences of {tokens} tokens; {stream.n_classes} different, and as many outputs at every token"


def contact_sheet(stream: Stream) -> Figure:
    """Draw the first training images of each experience, a row each, class after class."""
    from matplotlib.figure import Figure

    samples = stream.samples
    assert isinstance(samples, TensorSamples)
    parts = list(stream.benchmark.streams["train"])
    figure = Figure(figsize=(0.8 * SHOWN + 1, 0.9 * len(parts) + 0.6), layout="constrained")
    grid = figure.subplots(len(parts), SHOWN, squeeze=False)
    for number, (part, row) in enumerate(zip(parts, grid, strict=True)):
        rows = one_of_each(rows_of(part.dataset), samples.targets)
        for axes in row:
            axes.set_axis_off()
        for axes, image in zip(row, samples.gather(rows), strict=False):
            axes.imshow(image.movedim(0, -1).numpy(), cmap="gray", vmin=0, vmax=1)
        row[0].set_title(f"experience {number + 1}", fontsize="small", loc="left")
    return figure


def one_of_each(rows: Tensor, targets: Tensor) -> Tensor:
    """Return up to `SHOWN` rows, taking from each class in turn."""
    by_class = [rows[targets[rows] == label] for label in targets[rows].unique()]
    chosen = [part[turn] for turn in range(SHOWN) for part in by_class if turn < len(part)]
    return torch.stack(chosen[:SHOWN])
