"""What a trained encoder is worth for data that it has not learned: linear probes on its features."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from cl_ovq.errors import called
from cl_ovq.models.heads import unwrap
from streams import Stream, rows_of

MOST = 2000  # training samples of an experience
BATCH = 512


def can_probe(model: nn.Module, stream: Stream, device: torch.device) -> bool:
    """Return whether a model has a method `features` that gives a vector for each sample of a stream of images.

    Raises:
        UserError: it is the user's own, and fails.
    """
    if stream.kind != "classes" or not hasattr(unwrap(model), "features"):
        return False
    model.eval()
    found: object = _features(model, stream, torch.arange(1), device)
    return isinstance(found, Tensor) and found.ndim == 2


def linear_probes(model: nn.Module, stream: Stream, evaluation: str, device: torch.device) -> list[float | None]:
    """Return the accuracy of a linear classifier on the model's features, learned anew for each experience.

    Each is a logistic regression on standardised features of at most `MOST` training samples of the experience, among
    its own classes (Alain and Bengio 2016, arXiv 1610.01644). None where an experience has one class only.

    Args:
        model: with a method `features`, task-masked or not; left in evaluation mode.
        stream: gives training samples, and those that are judged.
        evaluation: name of the stream that is judged on.
        device: where the model lies.
    """
    model.eval()
    found: list[float | None] = []
    for train, test in zip(stream.benchmark.streams["train"], stream.benchmark.streams[evaluation], strict=True):
        rows = rows_of(train.dataset)
        rows = rows[torch.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().long()]
        x, y = encode(model, stream, rows, device), stream.samples.targets[rows]
        if len(y.unique()) < 2:
            found.append(None)
            continue
        judged = rows_of(test.dataset)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(x.numpy(), y.numpy())
        right = probe.score(encode(model, stream, judged, device).numpy(), stream.samples.targets[judged].numpy())
        found.append(float(right))
    return found


@torch.no_grad()
def encode(model: nn.Module, stream: Stream, rows: Tensor, device: torch.device) -> Tensor:
    """Return the model's features `[B, F]` of the stream's samples at these rows, on the CPU."""
    return torch.cat([_features(model, stream, part, device).cpu() for part in rows.split(BATCH)])


@torch.no_grad()
def _features(model: nn.Module, stream: Stream, rows: Tensor, device: torch.device) -> Tensor:
    network = unwrap(model)
    return called(f"model: {type(network).__name__}.features", network.features, stream.samples.gather(rows).to(device))
