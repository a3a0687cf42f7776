"""Parts of the user's own that tests enter, and that other tests must not know."""

import os
import sys
from contextlib import contextmanager

from cl_ovq.encoders import ENCODERS
from cl_ovq.imports import VARIABLE
from cl_ovq.metric_names import MATRIX_METRICS
from cl_ovq.mixers import MIXERS
from cl_ovq.models import HEADS, MODELS
from cl_ovq.strategies import AUGMENTATIONS, OPTIMIZERS, SCHEDULES, STRATEGIES
from streams import STREAMS


@contextmanager
def forgetting():
    """Forget at the end what was entered in the `with` block."""
    registries = (STRATEGIES, OPTIMIZERS, SCHEDULES, AUGMENTATIONS, MIXERS, MODELS, HEADS, ENCODERS, MATRIX_METRICS)
    known = [(registry, dict(registry)) for registry in registries]
    streams = set(STREAMS)
    try:
        yield
    finally:
        for registry, parts in known:
            registry._parts = parts
            type(registry).revision += 1
        for name in set(STREAMS) - streams:
            del STREAMS[name]
        for name in [name for name in sys.modules if name.startswith(("cl_ovq_parts_", "my_lab"))]:
            del sys.modules[name]
        os.environ.pop(VARIABLE, None)
