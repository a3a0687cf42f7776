"""The check of what is said to be frozen."""

from __future__ import annotations

import torch

from cl_ovq.audits.findings import Finding, judged, not_applicable
from cl_ovq.audits.subject import Subject, Watched, snapshot
from cl_ovq.encoders.stream import EncodedStream
from cl_ovq.models.heads import TaskMaskedModel
from streams.text_samples import TextSamples

BATCH = 16  # samples that a frozen encoder is given


def frozen_parts(subject: Subject) -> Finding:
    """What is said to be frozen is frozen: weights, and the running statistics of its norms over batches.

    Said to be frozen are parameters that require no gradient when an experience's first pass comes and when it ends;
    and everything but the head where the configuration says so: `model.train_encoder=never`, `first_experience` from
    the second one on, or a strategy that is a head. Measured: bit for bit between these two moments. LoRA that is
    merged changes frozen weights by its definition (`encoder.lora_merge`). A frozen encoder in front of the stream, of
    which no run holds more than features, is set to training mode and given a batch.

    Known case: an encoder whose weights require no gradient but that is in training mode, so that batch norm goes on
    following the data, and the features of past classes move.
    """
    config, watched = subject.small, subject.watched
    head = "model.head." if isinstance(watched.run.strategy.model, TaskMaskedModel) else "head."
    mode, weights, statistics = config.model.train_encoder, 0, 0
    moved: dict[str, int] = {}
    for now, before in watched.before.items():
        if (after := watched.after.get(now)) is None:
            continue
        frozen, still = before.frozen & after.frozen, before.still & after.still
        if mode == "never" or subject.part.is_head or (mode == "first_experience" and now > 0):
            parameters = before.tensors.keys() & _parameters(watched)
            frozen |= {name for name in parameters if not name.startswith(head)}
            still |= {name for name in before.running if not name.startswith(head)}
        for name in frozen | still:
            if not torch.equal(before.tensors[name], after.tensors[name]):
                moved.setdefault(name, now + 1)
        weights, statistics = max(weights, len(frozen)), max(statistics, len(still))
    stream = subject.stream
    if isinstance(stream, EncodedStream):
        weights += _check_encoder(stream, moved)
    measured = {"frozen_weights": weights, "frozen_statistics": statistics, "moved": len(moved)}
    if not weights + statistics:
        return not_applicable("nothing is declared frozen", **measured)
    if getattr(config.encoder, "lora_merge", False):
        return not_applicable("encoder.lora_merge adds to frozen weights after each experience", **measured)
    first = next(iter(moved.items()), ("", 0))
    when = f"in experience {first[1]}" if first[1] else "as it computed features"
    bad = f"{len(moved)} of {weights + statistics} frozen tensors moved: {first[0]} {when}"
    return judged(bool(moved), bad, "every frozen tensor is the same, bit for bit, after each experience", **measured)


def _check_encoder(stream: EncodedStream, moved: dict[str, int]) -> int:
    """Give a frozen encoder a batch, as if in training; add the tensors that move, and return how many there are."""
    network = stream.encoder.network().train()
    rows = torch.arange(min(BATCH, len(stream.raw.samples)))
    raw = stream.raw.samples
    before = snapshot(network).tensors
    network(raw.texts(rows) if isinstance(raw, TextSamples) else raw.gather(rows))
    after = snapshot(network).tensors
    moved |= {f"encoder.{name}": 0 for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    return len(before)


def _parameters(watched: Watched) -> set[str]:
    return {name for name, _ in watched.run.strategy.model.named_parameters()}
