"""`PAPER` against a derivation of its own: the means of sets of tokens, read token by token."""

import pytest
import torch

from kernels import PAPER, DictionaryOptions, ovq_attention

FEATURES, VALUES, BETA = 4, 3, 6.0


def by_sets(q, k, v, capacity, chunk):
    """Every token that is written belongs to a set, and stands for its key and value with the means of its set.

    So a set of c tokens has c terms in the softmax, where the operator adds log c to one. No mean is ever updated:
    all are made anew from the tokens, whose sets are all that is kept.
    """
    q, k = (x / x.norm(dim=-1, keepdim=True) for x in (q, k))
    sets, outputs = [], []
    for start in range(0, len(q), chunk):
        means = [k[s].mean(0) for s in sets]
        for t in range(start, min(start + chunk, len(q))):
            keys = [means[i] for i, s in enumerate(sets) for _ in s] + list(k[start : t + 1])
            values = [v[s].mean(0) for s in sets for _ in s] + list(v[start : t + 1])
            weights = torch.softmax(BETA * torch.stack(keys) @ q[t], 0)
            outputs.append(weights @ torch.stack(values))
        end = start + chunk
        if end > len(q):
            break
        fresh = list(range(start, end))
        if not sets:
            sets.append([fresh.pop(0)])
            means = [k[start]]
        wanted = int(end * capacity / (end + capacity)) - len(sets)
        nearest = {t: max((k[t] @ mean).item() for mean in means) for t in fresh}
        seeds = sorted(fresh, key=nearest.get)[: max(0, wanted)]
        for t in fresh:
            if t not in seeds:
                sets[max(range(len(means)), key=lambda i, t=t: (k[t] @ means[i]).item())].append(t)
        sets.extend([t] for t in sorted(seeds))
    return torch.stack(outputs), sets


@pytest.mark.parametrize("chunk", [1, 5, 8])
@pytest.mark.parametrize("tokens", [7, 48])
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_outputs_state_and_gradients(implementation, tokens, chunk):
    generator = torch.Generator().manual_seed(0)
    sizes = (FEATURES, FEATURES, VALUES)
    inputs = [torch.randn(tokens, size, generator=generator, dtype=torch.float64).requires_grad_() for size in sizes]
    expected, sets = by_sets(*inputs, capacity=9, chunk=chunk)
    options = DictionaryOptions(capacity=9, chunk_size=chunk, **PAPER)
    found, state = ovq_attention(
        *(x[None, :, None] for x in inputs),
        torch.tensor([BETA], dtype=torch.float64),
        options,
        output_final_state=True,
        implementation=implementation,
    )
    torch.testing.assert_close(found[0, :, 0], expected, rtol=1e-12, atol=1e-12)
    assert sorted(state.counts[0, 0][: len(sets)].tolist()) == sorted(len(s) for s in sets)
    weight = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((x * weight).sum(), inputs, retain_graph=True) for x in (found[0, :, 0], expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_our_default_differs_in_assignment_alone():
    paper, ours = DictionaryOptions(capacity=4, **PAPER), DictionaryOptions(capacity=4)
    assert [key for key in PAPER if getattr(paper, key) != getattr(ours, key)] == ["assignment"]
