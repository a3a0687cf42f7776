"""Prompts in a frozen vision transformer: what enters, what learns, and all that a run does with such a model."""

import io
import itertools
import math

import pytest
import torch
from encoder_helpers import Killed, killed_at_the_first_checkpoint
from rich.console import Console
from vit_helpers import tiny, write_experiment

import cl_ovq
from cl_ovq.config import load_config
from cl_ovq.encoders.prompted import PrefixAttention
from cl_ovq.encoders.prompts import CODAPromptOptions, DualPromptOptions, L2POptions, Site
from cl_ovq.errors import UserError
from cl_ovq.models import build_model
from cl_ovq.models.saving import load_model, save_model
from cl_ovq.runs.reevaluate import evaluate_finished
from cl_ovq.runs.run import Run, run_experiment
from cl_ovq.runs.setup import load_stream

pytest.importorskip("timm")

QUIET = Console(file=io.StringIO())
METHODS = {
    "l2p": ("strategy.pool_size=4", "strategy.top_k=2", "strategy.prompt_length=3"),
    "dualprompt": ("strategy.general_blocks=[0]", "strategy.expert_blocks=[1]", "strategy.expert_length=4"),
    "coda_prompt": ("strategy.blocks=[0,1]", "strategy.components=12"),
}
SITE = Site(width=16, depth=2, experiences=3)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("CL_OVQ_IMPORTS", "")
    path = write_experiment(tmp_path)

    def config(name, *overrides, output="run"):
        given = [f"output_dir={tmp_path / output}", f"strategy.name={name}", *METHODS.get(name, ()), *overrides]
        return load_config(path, given)

    return config


def model_of(config):
    stream = load_stream(config)
    torch.manual_seed(0)
    return stream, build_model(config, stream)


def written_out(attention, x, keys, values):
    """Attention of each head, sample and token in turn, over prefix and tokens."""
    heads, width = attention.num_heads, x.shape[2]
    size = width // heads
    q, k, v = (x @ attention.qkv.weight.T + attention.qkv.bias).split(width, dim=2)
    k, v = torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)
    mixed = torch.empty_like(x)
    for sample, head in itertools.product(range(len(x)), range(heads)):
        part = slice(head * size, (head + 1) * size)
        for token in range(x.shape[1]):
            scores = k[sample, :, part] @ q[sample, token, part] / math.sqrt(size)
            shares = scores.exp() / scores.exp().sum()
            mixed[sample, token, part] = (shares[:, None] * v[sample, :, part]).sum(0)
    return mixed @ attention.proj.weight.T + attention.proj.bias


@torch.no_grad()
def test_a_prefix_is_further_keys_and_values(tmp_path):
    attention = tiny(tmp_path).eval().blocks[0].attn
    attention.qkv.bias = torch.nn.Parameter(torch.randn(48))
    x, keys, values = torch.randn(2, 5, 16), torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    prefixed = PrefixAttention(attention)
    assert torch.allclose(prefixed(x), attention(x), atol=1e-6)
    prefixed.prefix = (keys, values)
    assert torch.allclose(prefixed(x), written_out(attention, x, keys, values), atol=1e-5)
    assert not torch.allclose(prefixed(x), attention(x), atol=1e-2)


@torch.no_grad()
def test_l2p_takes_the_nearest_prompts_of_each_sample():
    pool = L2POptions(pool_size=6, prompt_length=2, top_k=3, match_weight=0.5).prompts(SITE)
    queries, pool.losses = torch.randn(9, 16), []
    found = pool(queries).tokens
    losses = []
    for query, tokens in zip(queries, found, strict=True):
        far = [1 - float(query @ key / query.norm() / key.norm()) for key in pool.keys]
        best = min(itertools.combinations(range(6), 3), key=lambda chosen: sum(far[one] for one in chosen))
        wanted = torch.cat([pool.values[one] for one in sorted(best, key=far.__getitem__)])
        assert torch.equal(tokens, wanted)
        losses.append(0.5 * sum(far[one] for one in best))
    assert float(pool.losses[0]) == pytest.approx(sum(losses) / 9, abs=1e-6)


@torch.no_grad()
def test_dualprompt_knows_the_experience_in_training_alone():
    options = DualPromptOptions(general_blocks=[1], general_length=2, expert_blocks=[0], expert_length=3)
    prompts = options.prompts(SITE)
    prompts.begin(1)
    queries, prompts.losses = torch.randn(20, 16), []
    keys = torch.stack(list(prompts.keys))
    trained = prompts.train()(queries).prefixes
    assert torch.equal(trained[0][1], prompts.experts[1][0, 1].expand(20, 3, 16))
    assert torch.equal(trained[1][0], prompts.general[0, 0].expand(20, 2, 16))
    far = [1 - float(query @ keys[1] / query.norm() / keys[1].norm()) for query in queries]
    assert float(prompts.losses[0]) == pytest.approx(sum(far) / 20, abs=1e-6)
    evaluated = prompts.eval()(queries).prefixes[0]
    chosen = [max((0, 1), key=lambda one: float(query @ keys[one] / keys[one].norm())) for query in queries]
    assert set(chosen) == {0, 1}  # and never 2, which is still to come
    for sample, one in enumerate(chosen):
        assert torch.equal(evaluated[0][sample], prompts.experts[one][0, 0])


@torch.no_grad()
def test_coda_prompt_sums_the_components_so_far():
    prompts = CODAPromptOptions(components=7, prompt_length=4, blocks=[1], orthogonality=0.3).prompts(SITE)
    prompts.begin(1)  # of three experiences with two components each
    for weight in prompts.parameters():
        weight.normal_()
    queries, prompts.losses = torch.randn(5, 16), []
    keys, values = prompts(queries).prefixes[1]
    whole = torch.cat([keys, values], dim=1)
    for query, found in zip(queries, whole, strict=True):
        wanted = torch.zeros(4, 16)
        for experience, number in itertools.product(range(2), range(2)):
            attended = query * prompts.attention[experience][0, number]
            key = prompts.keys[experience][0, number]
            wanted += attended @ key / attended.norm() / key.norm() * prompts.values[experience][0, number]
        assert torch.allclose(found, wanted, atol=1e-5)
    penalty = 0.0
    for parts in (prompts.values, prompts.keys, prompts.attention):
        rows = [part[0, number].flatten() for part in parts[:2] for number in range(2)]
        products = [float(a @ b) - (i == j) for i, a in enumerate(rows) for j, b in enumerate(rows)]
        penalty += 0.3 * sum(product**2 for product in products) / 16
    assert float(prompts.losses[0]) == pytest.approx(penalty, rel=1e-5)


@torch.no_grad()
def test_components_begin_orthonormal():
    prompts = CODAPromptOptions(components=9, blocks=[0, 1]).prompts(SITE)
    prompts.begin(2)
    prompts.losses = []
    prompts(torch.randn(2, 16))
    assert float(prompts.losses[0]) < 1e-9


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_what_enters_changes_the_features_and_the_transformer_stays(config, tmp_path, name):
    stream, model = model_of(config(name))
    images = stream.samples.gather(torch.arange(6))
    plain = tiny(tmp_path).eval()
    assert not torch.allclose(model.eval().features(images), plain(images), atol=1e-2)
    backbone = model.encoder.backbone
    state = {key.removeprefix("transformer."): value for key, value in backbone.state_dict().items()}
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())
    assert not any(weight.requires_grad for weight in backbone.transformer.parameters())
    model.train()
    assert backbone.prompts.training
    assert not any(part.training for part in backbone.transformer.modules())


@torch.no_grad()
def test_dualprompt_without_blocks_is_the_transformer(config, tmp_path):
    stream, model = model_of(config("dualprompt", "strategy.general_blocks=[]", "strategy.expert_blocks=[]"))
    images = stream.samples.gather(torch.arange(6))
    assert torch.allclose(model.eval().features(images), tiny(tmp_path).eval()(images), atol=1e-6)


@torch.no_grad()
def test_l2p_reads_its_prompts_tokens(config, tmp_path):
    """Prompts stand before the tokens of the image here, as in the paper, and behind them in the model."""
    stream, model = model_of(config("l2p"))
    images, plain = stream.samples.gather(torch.arange(6)), tiny(tmp_path).eval()
    prompts = model.encoder.backbone.prompts(plain.forward_features(images)[:, 0]).tokens
    tokens = plain._pos_embed(plain.patch_embed(images))
    for block in plain.blocks:
        tokens = block(tokens if tokens.shape[1] > 17 else torch.cat([prompts, tokens], dim=1))
    wanted = plain.norm(tokens)[:, : 2 * 3].mean(1)
    assert torch.allclose(model.eval().features(images), wanted, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", METHODS)
def test_a_prediction_depends_on_its_own_sample_alone(config, tmp_path, name):
    stream, model = model_of(config(name))
    (prompts,) = (part for part in model.modules() if hasattr(part, "begin"))
    prompts.begin(2)
    images = stream.samples.gather(torch.arange(128))
    queries = tiny(tmp_path).eval().forward_features(images)[:, 0]
    if name != "coda_prompt":  # which chooses none: keys that tell samples apart
        for key, query in zip(prompts.keys, queries - queries.mean(0), strict=False):
            key.copy_(query)
    logits = model.eval()(images)
    alone = torch.cat([model(image[None]) for image in images])
    order = torch.randperm(128)
    assert torch.allclose(alone, logits, atol=1e-6)
    assert torch.allclose(model(images[order]), logits[order], atol=1e-6)
    inserted = prompts(queries)
    entered = inserted.prefixes[1][0] if inserted.tokens is None else inserted.tokens
    assert len(entered.unique(dim=0)) > 2


@pytest.mark.parametrize("name", [*METHODS, "slca"])
def test_saved_evaluated_and_gone_on_with(config, tmp_path, name):
    tuned = ("encoder.train_from=all",) if name == "slca" else ()
    chosen = config(name, *tuned, output="whole")
    result = run_experiment(chosen, QUIET)
    assert (result.provenance["method_bytes"] > 0) == (name == "slca")  # prompts are weights
    model = cl_ovq.load(chosen.output_dir).model()
    assert evaluate_finished(chosen.output_dir).values["accuracy"] == pytest.approx(result.matrix[-1])
    with killed_at_the_first_checkpoint(), pytest.raises(Killed):
        run_experiment(config(name, *tuned, output="cut"), QUIET)
    assert run_experiment(config(name, *tuned, output="cut"), QUIET, resume=True).matrix == result.matrix
    again = cl_ovq.load(tmp_path / "cut").model().state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())

    stream = load_stream(chosen)
    save_model(tmp_path / "model.pt", model, chosen, stream)
    images = stream.samples.gather(torch.arange(9))
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "model.pt").model(images), model(images))
    predicted = [value for row, values in enumerate(result.matrix) for value in values[row:] if row]
    assert not any(predicted)  # classes to come


@pytest.mark.parametrize("name", ["dualprompt", "coda_prompt"])
def test_what_past_experiences_learned_rests(config, name):
    chosen = config(name, "optimizer.weight_decay=0.1", "training.accumulation=2")
    states = []
    with Run.open(chosen, QUIET) as run:
        (prompts,) = (part for part in run.model.modules() if hasattr(part, "begin"))
        states.append({key: value.clone() for key, value in prompts.state_dict().items()})
        for _, data in run.remaining():
            run.strategy.train(data, eval_streams=[])
            states.append({key: value.clone() for key, value in prompts.state_dict().items()})
    for experience, (before, after) in enumerate(itertools.pairwise(states)):
        moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
        own = {key for key in after if key.endswith(f".{experience}")}
        assert own
        assert own <= moved <= own | {"general", "experience"}


def test_only_present_classes_compete(config):
    with Run.open(config("l2p"), QUIET) as run:
        head, so_far = run.model.head, torch.zeros(10, dtype=torch.bool)
        for _, data in run.remaining()[:2]:
            before, present = head.weight.detach().clone(), torch.zeros(10, dtype=torch.bool)
            present[list(data.classes_in_this_experience)] = True
            run.strategy.train(data, eval_streams=[])
            assert torch.equal((head.weight != before).all(1), present)
            so_far |= present
            with torch.no_grad():
                shown = head(torch.randn(50, 16)).argmax(1)
            assert so_far[shown].all()


def test_a_model_of_timm_by_its_name(config):
    named = ("encoder.name=timm", "encoder.model=test_vit", "encoder.weights=random")
    stream, model = model_of(config("l2p", *named))
    with torch.no_grad():
        assert model.eval()(stream.samples.gather(torch.arange(2))).shape == (2, 10)


def test_prompts_on_a_perceptron_and_a_memory(config):
    with_mlp = config("coda_prompt", "model.name=mlp", "stream.scenario=task_incremental", "evaluation.stop_after=1")
    assert run_experiment(with_mlp, QUIET).matrix[1][0] > 0.2
    memory = config("dualprompt", "model.head=memory", "memory.capacity=60", "evaluation.stop_after=1", output="memory")
    assert run_experiment(memory, QUIET).matrix[1][0] > 0.2


def test_mistakes_are_one_line(config):
    def refused(name, *overrides):
        with pytest.raises(UserError) as error:
            run_experiment(config(name, *overrides), QUIET)
        assert "\n" not in str(error.value)
        return str(error.value)

    efficient = ("encoder.name=timm", "encoder.model=test_efficientnet", "encoder.weights=random")
    assert "puts prompts into an encoder, but there is none" in refused("l2p", "encoder.name=none")
    assert "encoder.name: its network is not a timm vision transformer: prompts enter a vision" in refused(
        "l2p", *efficient
    )
    averaged = config("l2p").encoder.model.replace("Tiny", "Averaged")
    assert "its features are not a class token" in refused("l2p", f"encoder.model={averaged}")
    assert "encoder.lora_rank: strategy.name=l2p puts prompts into" in refused("l2p", "encoder.lora_rank=2")
    assert "encoder.train_from: strategy.name=l2p" in refused("l2p", "encoder.train_from=all")
    assert "encoder.layer: strategy.name=l2p" in refused("l2p", "encoder.layer=norm")
    assert "encoder.pool: strategy.name=l2p" in refused("l2p", "encoder.pool=first")
    assert "encoder.cache: has no effect" in refused("l2p", "encoder.cache=false")
    assert "model.train_encoder: with never, prompts are not trained" in refused("l2p", "model.train_encoder=never")
    assert "learns prompts in every experience" in refused("l2p", "model.train_encoder=first_experience")
    assert "strategy.top_k: 5 is too large: strategy.pool_size is 4" in refused("l2p", "strategy.top_k=5")
    assert "there is no block 2: the transformer has 0 to 1" in refused("coda_prompt", "strategy.blocks=[2]")
    assert "strategy.blocks: block 1 is listed twice" in refused("coda_prompt", "strategy.blocks=[1,1]")
    assert "strategy.components: 2 is too small" in refused("coda_prompt", "strategy.components=2")
    assert "strategy.prompt_length: 3 is odd" in refused("coda_prompt", "strategy.prompt_length=3")
    assert "block 0 is also in strategy.general_blocks" in refused("dualprompt", "strategy.expert_blocks=[0]")
