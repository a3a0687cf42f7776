"""Samples a second of the memory head and its peers, beside scikit-learn's and Avalanche's on the same features."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from cl_ovq.models.discriminant import NearestMean, StreamingDiscriminant
from cl_ovq.models.fecam import MahalanobisHead
from cl_ovq.models.gradient_free import GradientFreeHead
from cl_ovq.models.memory import MemoryHead
from cl_ovq.models.neighbours import NearestNeighbours
from cl_ovq.models.ridge import RidgeHead
from cl_ovq.report.table import Column, Number, Table
from cl_ovq.runs.provenance import code_revision, device_name, package_versions

QUERIES = 1000  # that are predicted together
AVALANCHE = "Avalanche StreamingLDA"


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        samples: learned, and as many predicted.
        features: F.
        classes: C.
        batch: samples learned together, where a method learns in batches.
        seconds: after which learning and predicting are each cut short, where a method can be.
        width: random features of RanPAC.
        slots: of the memory head, per class.
    """

    samples: int = 100_000
    features: int = 512
    classes: int = 100
    batch: int = 128
    seconds: float = 10.0
    width: int = 2000
    slots: int = 8


@dataclass
class Method:
    """A classifier, as it is measured.

    Attributes:
        learn: takes features `[B, F]` and targets `[B]`.
        predict: maps features `[B, F]` to classes `[B]`.
        nbytes: that it keeps; None where that is not known.
        whole: whether it learns from all samples at once.
        beside: the peer of another library that it is compared with.
    """

    learn: Callable[[Tensor, Tensor], Any]
    predict: Callable[[Tensor], Tensor]
    nbytes: Callable[[], int | None] = lambda: None
    whole: bool = False
    beside: str | None = None


def measure_heads(setting: Setting, console: Console) -> dict[str, Any]:
    """Learn and predict with every method in turn, on one thread.

    A method learns in batches for at most `seconds`, then predicts in batches for as long; scikit-learn's learn all at
    once. What a method computes between the two, once, is measured by itself: it is a second prediction of the first
    batch that counts.

    Args:
        setting: what is measured.
        console: told each method's name.

    Returns:
        `rows` of `{method, learned, learn, prepare, predict, bytes, accuracy, beside}`: samples learned, samples a
        second learned and predicted, seconds in between; `beside` names the peer of another library. And `setting`,
        `machine`.
    """
    from threadpoolctl import threadpool_limits

    x, y, queries, answers = gaussian_classes(setting)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, make in methods(setting).items():
                console.print(f"{name}, {setting.classes} classes", highlight=False)
                rows.append({"method": name} | _measure(make(), setting, (x, y), (queries, answers)))
        device = device_name(torch.device("cpu"))  # which names the threads
    finally:
        torch.set_num_threads(threads)
    machine = {
        "device": device,
        "packages": package_versions(),
        "scikit-learn": __import__("sklearn").__version__,
        "code": code_revision(),
    }
    return {"rows": rows, "setting": vars(setting), "machine": machine}


def gaussian_classes(setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw features and targets of Gaussian classes of one covariance: to be learned, and to be predicted."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(setting.classes, setting.features, generator=generator)
    mixing = torch.randn(setting.features, setting.features, generator=generator) / setting.features**0.5
    found: list[Tensor] = []
    for _ in range(2):
        y = torch.randint(setting.classes, (setting.samples,), generator=generator)
        noise = torch.randn(setting.samples, setting.features, generator=generator)
        found += [means[y] + 4 * noise @ mixing, y]
    return found[0], found[1], found[2], found[3]


def methods(setting: Setting) -> dict[str, Callable[[], Method]]:
    """Return what makes each method, by name, peers after what is compared with them."""
    shape: dict[str, Any] = {"features": setting.features, "classes": setting.classes}

    def ours(make: Callable[[], MemoryHead | GradientFreeHead], beside: str | None = None) -> Method:
        torch.manual_seed(0)
        head = make()
        return Method(head.observe, lambda x: head(x).argmax(1), lambda: head.nbytes, beside=beside)

    def memory() -> MemoryHead:
        return MemoryHead(features=setting.features, classes=setting.classes, capacity=setting.slots * setting.classes)

    neighbours = partial(NearestNeighbours, **shape, capacity=setting.samples)
    return {
        "memory head": partial(ours, memory),
        "ridge": partial(ours, partial(RidgeHead, **shape, strength=1.0), "scikit-learn Ridge"),
        "scikit-learn Ridge": _ridge,
        "ranpac": partial(ours, partial(RidgeHead, **shape, strength=1.0, width=setting.width)),
        "slda": partial(ours, partial(StreamingDiscriminant, **shape), AVALANCHE),
        AVALANCHE: partial(_avalanche, setting),
        "scikit-learn LinearDiscriminantAnalysis": partial(_discriminant, setting),
        "ncm": partial(ours, partial(NearestMean, **shape), "scikit-learn NearestCentroid"),
        "scikit-learn NearestCentroid": _centroid,
        "knn": partial(ours, neighbours, "scikit-learn KNeighborsClassifier"),
        "scikit-learn KNeighborsClassifier": _neighbours,
        "fecam": partial(ours, partial(MahalanobisHead, **shape)),
    }


def _scikit(model: Any) -> Method:
    return Method(
        lambda x, y: model.fit(x.numpy(), y.numpy()), lambda x: torch.from_numpy(model.predict(x.numpy())), whole=True
    )


def _ridge() -> Method:
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=1.0)
    return Method(
        lambda x, y: model.fit(x.numpy(), np.eye(int(y.max()) + 1, dtype=np.float32)[y.numpy()]),
        lambda x: torch.from_numpy(model.predict(x.numpy()).argmax(1)),
        whole=True,
    )


def _discriminant(setting: Setting) -> Method:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    priors = np.full(setting.classes, 1 / setting.classes)
    return _scikit(LinearDiscriminantAnalysis(solver="lsqr", shrinkage=1e-4, priors=priors))


def _centroid() -> Method:
    from sklearn.neighbors import NearestCentroid

    return _scikit(NearestCentroid())


def _neighbours() -> Method:
    from sklearn.neighbors import KNeighborsClassifier

    return _scikit(KNeighborsClassifier(5, algorithm="brute"))


def _avalanche(setting: Setting) -> Method:
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import StreamingLDA

    model = StreamingLDA(
        slda_model=nn.Identity(),
        criterion=nn.CrossEntropyLoss(),
        input_size=setting.features,
        num_classes=setting.classes,
        evaluator=EvaluationPlugin(loggers=[]),
    )

    def learn(x: Tensor, y: Tensor) -> None:
        for one, target in zip(x.split(1), y.split(1), strict=True):
            model.fit(one, target)

    # It keeps nothing that its predictions need, and inverts its covariance for each.
    return Method(learn, lambda x: model.predict(x).argmax(1))


def _measure(
    method: Method, setting: Setting, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    def batches(pair: tuple[Tensor, Tensor], size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(pair[0].split(size), pair[1].split(size), strict=True)

    learned, learning = 0, 0.0
    with torch.no_grad():
        for x, y in batches(train, setting.samples if method.whole else setting.batch):
            learning += _seconds(lambda x=x, y=y: method.learn(x, y))  # type: ignore[misc]
            learned += len(y)
            if learning > setting.seconds:
                break
        first = next(batches(test, QUERIES))[0]
        prepared = _seconds(lambda: method.predict(first))
        predicted, predicting, right = 0, 0.0, 0
        for x, y in batches(test, QUERIES):
            begun = time.perf_counter()
            found = method.predict(x)
            predicting += time.perf_counter() - begun
            predicted += len(y)
            right += int((found == y).sum())
            if predicting > setting.seconds:
                break
    return {
        "learned": learned,
        "learn": learned / learning,
        "prepare": max(0.0, prepared - len(first) * predicting / predicted),
        "predict": predicted / predicting,
        "bytes": method.nbytes(),
        "accuracy": right / predicted,
        "beside": method.beside,
    }


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def heads_table(measured: dict[str, Any]) -> Table:
    """Return the rows as a table; ratios are speeds of ours in multiples of the peer's."""
    setting = measured["setting"]
    rows = {row["method"]: row for row in measured["rows"]}
    table = Table(
        Column("method", right=False),
        *("learned/s", "predicted/s", "between, s", "bytes", "accuracy"),
        Column("beside", right=False),
        *("learning", "predicting"),
        title=f"{setting['samples']} x {setting['features']}, {setting['classes']} classes",
    )
    for row in measured["rows"]:
        peer = rows.get(row["beside"])
        ratios = [Number(row[name] / peer[name], spec=".2f") if peer else "" for name in ("learn", "predict")]
        cut = row["learned"] < setting["samples"]
        table.add(
            row["method"] + (f" (of {row['learned']})" if cut else ""),
            Number(row["learn"], spec=".0f"),
            Number(row["predict"], spec=".0f"),
            Number(row["prepare"], spec=".2f"),
            Number(row["bytes"], "memory_bytes"),
            Number(row["accuracy"], "accuracy"),
            row["beside"] or "",
            *ratios,
        )
    return table
