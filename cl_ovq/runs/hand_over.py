"""What a run hands over to others as files: the weights of its trained model, and the features of its stream."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from cl_ovq.config import ExperimentConfig
from cl_ovq.errors import UserError
from cl_ovq.paths import write_atomically
from cl_ovq.runs.reevaluate import trained_model
from cl_ovq.runs.setup import load_stream
from streams import STREAMS
from streams.stream import classless

WEIGHTS = (".pth", ".pt")
FEATURES = ".npz"
BATCH = 4096


def write_model_weights(run: str, path: Path) -> int:
    """Write the weights of a finished run's model, as a state dict that `encoder.weights` reads.

    Args:
        run: its directory or checkpoint, or its id or name in MLflow.
        path: of the file.

    Returns:
        How many numbers it holds.

    Raises:
        UserError: there is no such run, or the file cannot be written.
    """
    if path.suffix not in WEIGHTS:
        raise UserError(f"output: {path} must end in {' or '.join(WEIGHTS)}")
    state = {name: x for name, x in trained_model(run).state_dict().items() if isinstance(x, torch.Tensor)}
    content = io.BytesIO()
    torch.save(state, content)
    write_atomically(path, content.getvalue())
    return sum(x.numel() for x in state.values())


def write_features(config: ExperimentConfig, path: Path) -> tuple[int, int]:
    """Write all samples of a stream as feature vectors, by its encoder or as they are, with the names of their classes.

    Args:
        config: names stream and encoder.
        path: of an .npz file, as the stream `features` reads it.

    Returns:
        Samples and features of each.

    Raises:
        UserError: the stream has no classes, or labels that restart, or the file cannot be written.
    """
    if path.suffix != FEATURES:
        raise UserError(f"output: {path} must end in {FEATURES}")
    if STREAMS[config.stream.name].kind != "classes":
        has = classless(STREAMS[config.stream.name].kind)
        raise UserError(f"stream.name: '{config.stream.name}' has {has}, but features need samples with labels")
    stream = load_stream(config)
    if stream.classes_per_experience != stream.original_classes:
        raise UserError("stream.scenario: labels restart in each experience: use stream.scenario=class_incremental")
    rows = torch.arange(len(stream.samples)).split(BATCH)
    x = torch.cat([stream.samples.gather(part).flatten(1) for part in rows])
    content = io.BytesIO()
    np.savez(content, features=x.numpy(), label=np.array(stream.class_names)[stream.samples.targets.numpy()])
    write_atomically(path, content.getvalue())
    return len(x), x.shape[1]
