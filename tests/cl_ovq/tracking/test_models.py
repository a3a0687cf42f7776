"""A model that was logged answers as the one that was trained, dictionary included."""

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from cl_ovq.mixers import dictionaries
from cl_ovq.models.saving import load_model, save_model

VECTORS = ("stream.name=features", "stream.data=x.npz", "model.name=mlp", "strategy.name=naive")
KINDS = {
    "stream": (),
    "sequence": ("dictionary.scope=sequence",),
    "softmax": ("model.mixer=softmax",),
    "memory": ("model.name=pixels", "model.head=memory", "memory.capacity=50", "strategy.name=naive"),
    "ridge": ("model.name=random_features", "model.width=40", "strategy.name=ridge"),
    "ranpac": ("model.name=pixels", "strategy.name=ranpac", "strategy.width=50", "stream.scenario=task_incremental"),
    "knn": ("model.name=pixels", "strategy.name=knn", "strategy.capacity=40"),
    "task_incremental": ("stream.scenario=task_incremental",),
    "vectors": VECTORS,
    "vectors with task labels": (*VECTORS, "stream.scenario=task_incremental"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_logged_model_gives_the_same_predictions(run_in, tiny, store, tmp_path, monkeypatch, kind):
    trained = {}
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(80, 5)), y=np.arange(80) % 4)

    def keep(path, model, config, stream):
        trained.update(model=model, stream=stream)
        save_model(path, model, config, stream)

    monkeypatch.setattr("cl_ovq.models.saving.save_model", keep)
    result = run_in(tmp_path, tiny("tracking.enabled=true", f"tracking.uri={store}", *KINDS[kind]))
    model, stream = trained["model"].eval(), trained["stream"]
    images = stream.samples.gather(torch.arange(20))
    labels = torch.arange(20) % 2
    inputs = (images, labels) if stream.scenario == "task_incremental" else (images,)
    with torch.no_grad():
        expected = model(*inputs).numpy()

    run = MlflowClient(tracking_uri=store).get_run(result.run_id)
    (logged,) = run.outputs.model_outputs
    mlflow.set_tracking_uri(store)
    loaded = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
    name = "images" if images.ndim == 4 else "vectors"
    given = {name: images.numpy(), "task_labels": labels.numpy()} if len(inputs) > 1 else images.numpy()
    assert np.array_equal(loaded.predict(given), expected)
    signature = loaded.metadata.signature
    assert signature.inputs.inputs[0].shape == (-1, *stream.samples.sample_shape)
    assert signature.outputs.inputs[0].shape == (-1, stream.n_classes)

    saved = load_model(next(tmp_path.rglob("runs/**/model.pt")))
    for name, dictionary in dictionaries(model).items():
        mine = dictionary.state_dict()
        assert all(torch.equal(mine[key], value) for key, value in dictionaries(saved.model)[name].state_dict().items())
        assert int(mine["counts"].sum()) > 0
    if kind == "stream":
        assert dictionaries(model)
        next(iter(dictionaries(saved.model).values())).reset()  # the dictionary is what the answers depend on
        with torch.no_grad():
            assert not np.allclose(saved.model(*inputs).numpy(), expected)


def test_models_need_not_be_logged(run_in, tiny, store, tmp_path):
    config = tiny("tracking.enabled=true", f"tracking.uri={store}", "tracking.log_model=false", "stream.experiences=1")
    result = run_in(tmp_path, config)
    run = MlflowClient(tracking_uri=store).get_run(result.run_id)
    assert run.outputs is None or not run.outputs.model_outputs
    assert not list(tmp_path.rglob("model.pt"))
