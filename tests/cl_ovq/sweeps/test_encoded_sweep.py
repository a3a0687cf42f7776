"""Trials of a sweep share the features of a frozen encoder, which one of them computes."""

import json

import pytest


@pytest.mark.slow
def test_trials_share_features(sweep_file, start, tmp_path):
    features = tmp_path / "features"
    fixed = {
        "tracking.enabled": False,
        "model.name": "pixels",
        "strategy.name": "ridge",
        "encoder.name": "torchvision",
        "encoder.weights": "random",
        "encoder.size": 16,
        "encoder.cache_dir": str(features),
    }
    space = {"encoder.layer": {"choice": ["layer1"]}, "strategy.strength": {"choice": [1.0, 100.0]}}
    outcome, said = start(sweep_file(set=fixed, space=space), tmp_path / "sweep")
    assert outcome.best is not None, said
    results = [json.loads(path.read_text()) for path in (tmp_path / "sweep").rglob("results.json")]
    assert len(results) == 2
    assert all(result["metrics"]["accuracy"] > 0.3 for result in results)
    digests = {result["provenance"]["data"]["encoder"]["digest"] for result in results}
    assert [path.parent.name for path in features.glob("*/features")] == list(digests)
