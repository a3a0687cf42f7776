"""Hyper-parameters that change while a trial goes on, as population-based training asks."""

from __future__ import annotations

from pathlib import Path

from cl_ovq.config import ExperimentConfig, to_dict
from cl_ovq.runs.checkpoints import write_checkpoint
from cl_ovq.runs.checkpoints.schema import read_run

# Of the optimizer's own state, by key of the configuration.
GROUPS = {"learning_rate": "lr", "weight_decay": "weight_decay", "momentum": "momentum"}


def set_configuration(path: Path, config: ExperimentConfig) -> None:
    """Make a checkpoint one of another configuration, which goes on with its weights and its own hyper-parameters.

    The optimizer's state holds some of them too. The others are read when the run is built.

    Args:
        path: the checkpoint; nothing is done if there is none, or if it is of this configuration.
        config: the configuration; it may differ in what leaves all shapes as they are.
    """
    if not path.exists():
        return
    run = read_run(path)
    tree = to_dict(config)
    if run["about"]["config"] == tree:
        return
    run["about"]["config"] = tree
    alike = getattr(config.optimizer, "decay_norm_and_bias", True)
    for number, group in enumerate(run["state"]["optimizer"]["param_groups"]):
        for key, name in GROUPS.items():
            if number % 2 and key == "weight_decay" and not alike:
                continue  # of every second group nothing decays, see `models.normalisation`
            if name in group and hasattr(config.optimizer, key):
                share = group.get("share", 1) if key == "learning_rate" else 1  # see `models.freezing`
                group[name] = getattr(config.optimizer, key) * share
    write_checkpoint(path, run)
