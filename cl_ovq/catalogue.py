"""Everything that a configuration can name, by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cl_ovq.config.load import list_experiments
from cl_ovq.learning import OPTIMIZERS, STRATEGIES
from cl_ovq.mixers import MIXERS
from cl_ovq.models import MODELS
from kernels import GROWTH
from streams import STREAMS


def _streams() -> dict[str, str]:
    return {name: entry.summary for name, entry in STREAMS.items()}


def _growth() -> dict[str, str]:
    return {name: (schedule.__doc__ or "").strip().splitlines()[0] for name, schedule in GROWTH.items()}


def _experiments() -> dict[str, str]:
    """Return the experiments with the comment on their first line."""
    summaries = {}
    for name, path in list_experiments().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        summaries[name] = first.removeprefix("#").strip() if first.startswith("#") else str(path)
    return summaries


KINDS: dict[str, Callable[[], Mapping[str, str]]] = {
    "streams": _streams,
    "models": MODELS.summaries,
    "mixers": MIXERS.summaries,
    "growth": _growth,
    "strategies": STRATEGIES.summaries,
    "optimizers": OPTIMIZERS.summaries,
    "experiments": _experiments,
}
