"""Encoders that are trained: what moves and what does not, and everything that a run does with its model."""

from __future__ import annotations

import io

import pytest
import torch
from encoder_helpers import Killed, by_hand, killed_at_the_first_checkpoint
from rich.console import Console

import cl_ovq
from cl_ovq.config import load_config
from cl_ovq.errors import UserError
from cl_ovq.models import build_model
from cl_ovq.models.saving import load_model, save_model
from cl_ovq.runs.reevaluate import evaluate_finished
from cl_ovq.runs.run import Run, run_experiment
from cl_ovq.runs.setup import load_stream
from cl_ovq.training.lora import LoRAMerging

QUIET = Console(file=io.StringIO())
LORA = ("encoder.train_from=null", "encoder.lora_rank=2", "encoder.lora_modules=[second]")
MERGED = (*LORA, "encoder.lora_merge=true")
KINDS = {"from a layer": (), "all": ("encoder.train_from=all",), "lora": LORA, "merged": MERGED}


@pytest.fixture
def config(files, tmp_path):
    code, weights = files
    path = tmp_path / "own.yaml"
    path.write_text(
        "stream: {name: split_digits, experiences: 2}\n"
        f"encoder: {{name: file, model: '{code}:Small', weights: '{weights}', train_from: second}}\n"
        "model: {name: pixels}\nstrategy: {name: replay, batch_size: 64, buffer_size: 50}\n"
        "figures: false\ntracking: {enabled: false}\n"
    )

    def config(*overrides, output="run"):
        if any("lora_rank" in override for override in overrides):
            pytest.importorskip("peft")
        return load_config(path, [f"output_dir={tmp_path / output}", *overrides])

    return config


def trained(config, tmp_path):
    result = run_experiment(config, QUIET)
    return result, cl_ovq.load(config.output_dir).model()


def test_what_comes_before_the_layer_stays(config, files, tmp_path):
    _, model = trained(config(), tmp_path)
    before, after = torch.load(files[1], weights_only=True), model.encoder.backbone.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"second.weight", "second.bias"}  # `fc` is never called


def test_the_whole_is_trained(config, files, tmp_path):
    _, model = trained(config("encoder.train_from=all"), tmp_path)
    before, after = torch.load(files[1], weights_only=True), model.encoder.backbone.state_dict()
    stayed = {name for name in before if torch.equal(before[name], after[name])}
    assert stayed == {"fc.weight", "fc.bias"}


def test_only_what_is_trained_is_in_training_mode(config):
    stream = load_stream(config())
    network = build_model(config(), stream).train()
    modes = {name: module.training for name, module in network.encoder.backbone.named_modules()}
    assert modes == {
        **dict.fromkeys(["", "second", "drop", "fc"], True),
        **dict.fromkeys(["first", "first.0", "first.1", "first.2"], False),
    }
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"encoder.backbone.first.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_before_training_it_is_the_encoder(config, files, kind):
    stream = load_stream(config(*KINDS[kind]))
    network = build_model(config(*KINDS[kind]), stream).eval()
    images = stream.samples.gather(torch.arange(5))
    assert torch.allclose(network.features(images), by_hand(files[1], images), atol=1e-4)


def test_lora_trains_its_matrices_alone(config, files, tmp_path):
    _, model = trained(config(*LORA), tmp_path)
    before, after = torch.load(files[1], weights_only=True), model.encoder.backbone.state_dict()
    assert torch.equal(after["second.base_layer.weight"], before["second.weight"])
    assert torch.equal(after["first.1.running_mean"], before["first.1.running_mean"])
    assert after["second.lora_B.default.weight"].abs().max() > 0
    learned = {name for name, parameter in model.encoder.named_parameters() if parameter.requires_grad}
    assert learned == {f"backbone.second.lora_{which}.default.weight" for which in "AB"}


def test_merged_matrices_go_into_the_weights_and_others_begin(config):
    chosen = config(*MERGED, "strategy.name=naive")
    with Run.open(chosen, QUIET) as run:
        images = run.stream.samples.gather(torch.arange(7))
        layer = run.model.encoder.backbone.second
        (merging,) = (plugin for plugin in run.strategy.plugins if isinstance(plugin, LoRAMerging))
        merge, seen = merging.after_training_exp, []

        def watched(*args, **kwargs):
            states = []
            for step in (lambda: None, lambda: merge(*args, **kwargs)):
                step()
                state = {name: weight.clone() for name, weight in layer.state_dict().items()}
                with torch.no_grad():
                    states.append((state, run.model.eval()(images)))
            seen.append(states)
            assert not {layer.lora_A.default.weight, layer.lora_B.default.weight} & {*run.strategy.optimizer.state}

        merging.after_training_exp = watched
        for _, data in run.remaining():
            run.strategy.train(data, eval_streams=[])
    for (before, said), (after, says) in seen:
        a, b = (before[f"lora_{which}.default.weight"] for which in "AB")
        added = torch.einsum("or,rchw->ochw", b[:, :, 0, 0], a) * 16 / 2  # alpha over rank
        assert added.abs().max() > 1e-3
        assert torch.allclose(after["base_layer.weight"], before["base_layer.weight"] + added, atol=1e-6)
        assert torch.allclose(says, said, atol=1e-5)
        assert not after["lora_B.default.weight"].any()
        assert not torch.equal(after["lora_A.default.weight"], a)
    firsts = [states[1][0]["lora_A.default.weight"] for states in seen]
    assert not torch.equal(*firsts)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_evaluated_and_gone_on_with(config, files, tmp_path, kind):
    chosen = config(*KINDS[kind], output="whole")
    result, model = trained(chosen, tmp_path)
    assert evaluate_finished(chosen.output_dir).values["accuracy"] == pytest.approx(result.matrix[-1])
    assert result.provenance["data"]["encoder"]["sha256"] == chosen.encoder.sha256

    with killed_at_the_first_checkpoint(), pytest.raises(Killed):
        run_experiment(config(*KINDS[kind], output="cut"), QUIET)
    assert run_experiment(config(*KINDS[kind], output="cut"), QUIET, resume=True).matrix == result.matrix
    again = cl_ovq.load(tmp_path / "cut").model().state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in model.state_dict().items())

    stream = load_stream(chosen)
    save_model(tmp_path / "model.pt", model, chosen, stream)
    files[1].unlink()  # the file needs no weights from elsewhere
    images = stream.samples.gather(torch.arange(9))
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "model.pt").model(images), model(images))


def test_a_memory_and_a_perceptron_on_a_trained_encoder(config, tmp_path):
    memory = config("model.head=memory", "memory.capacity=60", "strategy.name=naive", output="memory")
    assert run_experiment(memory, QUIET).metrics["accuracy"] > 0.2
    perceptron = config("model.name=mlp", "stream.scenario=task_incremental", output="perceptron")
    assert run_experiment(perceptron, QUIET).run_name == "Small+mlp replay seed 0"


def test_mistakes_are_one_line(config):
    def refused(*overrides):
        with pytest.raises(UserError) as error:
            run_experiment(config(*overrides), QUIET)
        return str(error.value)

    assert "encoder.train_from: there is no 'secnd': did you mean 'second'?" in refused("encoder.train_from=secnd")
    assert "LoRA trains nothing else" in refused("encoder.lora_rank=2")
    assert "encoder.precision: gradients would underflow in float16" in refused("encoder.precision=float16")
    assert "encoder.train_from: this strategy does not train the encoder" in refused("strategy.name=ridge")
    assert "model.train_encoder=never does not train" in refused("model.train_encoder=never")
    assert "encoder.lora_modules: used only with encoder.lora_rank" in refused("encoder.lora_modules=[second]")
    assert "encoder.lora_merge: used only with encoder.lora_rank" in refused("encoder.lora_merge=true")
    assert "encoder.lora_alpha: used only with encoder.lora_rank" in refused("encoder.lora_alpha=3")
    for option in ("batch_size=7", "cache=false", "cache_dir=kept"):
        assert f"encoder.{option.split('=')[0]}: has no effect: features of a trained" in refused(f"encoder.{option}")
    assert "strategy.name=ewc, which pulls weights towards earlier values" in refused(*MERGED, "strategy.name=ewc")
    assert "starts every experience from the first weights" in refused(*MERGED, "strategy.name=gdumb")
    assert "encoder.lora_merge: has no effect" in refused(*MERGED, "model.train_encoder=first_experience")
    assert "encoder.lora_modules:" in refused(*LORA[:2], "encoder.lora_modules=[nothing]")
