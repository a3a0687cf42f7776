"""A small study, and how it is run."""

import io

from rich.console import Console

from cl_ovq.studies import load_study, run_study

STUDY = """
title: Small
seeds: 2
set: {{threads: 1, tracking.enabled: false}}
tuning: {{seeds: [7], grid: {{optimizer.learning_rate: [1e-6, 1e-2]}}}}
refit: {{strategy: replay}}
grids:
- stream:
    digits: {{experiment: {tiny}}}
  model:
    mlp: {{model.name: mlp, model.depth: 1}}
  strategy:
    naive: {{strategy.name: naive, tune: null, optimizer.learning_rate: 1e-2}}
    replay: {{strategy.name: replay}}
"""


def run(file, folder, *overrides, jobs=1):
    """Run a study; return what it found, and what it said."""
    said = io.StringIO()
    return run_study(load_study(str(file), overrides), folder, Console(file=said), jobs=jobs), said.getvalue()


def results(folder):
    """Return the time of writing of every result under a folder."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("results.json")}
