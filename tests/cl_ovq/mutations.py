"""Changes of plain data, one at a time, as somebody else's program might have made them. The same ones every time."""

import copy
import random

import torch

from cl_ovq.errors import UserError

WRONG = (
    *(None, True, -1, 0, 99, 3.5, 10**12, 2**63, -(2**70), 10**400, 1e308, -1e-320, float("inf"), float("nan")),
    *("", "x", "[/b]", "\ud800", "../../etc/passwd", [], {}, [[]], [None], {"x": 1}, [1, 2, 3], {"name": 5}),
)


def paths(tree, path=()):
    """Return the place of every part of nested data."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    return [path, *(place for key, part in items for place in paths(part, (*path, key)))]


def few(places, count, rng):
    """Return some places, of all kinds: a matrix has many that are alike."""
    kinds = {}
    for place in places:
        kinds.setdefault(tuple(key for key in place if isinstance(key, str)), []).append(place)
    groups = list(kinds.values())
    rng.shuffle(groups)
    return [rng.choice(groups[number % len(groups)]) for number in range(count)]


def tensor_changes(tensor, rng):
    other = torch.int64 if tensor.is_floating_point() else torch.float32
    changed = [
        tensor.to(other),
        tensor.flatten()[:0],
        tensor.unsqueeze(0),
        torch.cat([tensor.flatten(), tensor.flatten()[:1]]),
        tensor.to(torch.float64 if tensor.is_floating_point() else torch.int32),
    ]
    if tensor.is_floating_point():
        changed += [torch.full_like(tensor, value) for value in (float("nan"), float("inf"), -1.0, 1e30)]
    else:
        changed += [torch.full_like(tensor, value) for value in (0, 1, 100)]
        changed += [torch.full_like(tensor, -(2**62))] if tensor.dtype == torch.int64 else []
    return rng.choice(changed)


def mutated(tree, path, rng):
    """Return a copy of nested data with the part at a place changed, removed, doubled or renamed."""
    tree = copy.deepcopy(tree)
    if not path:
        return rng.choice(WRONG)
    *way, last = path
    tuples = []
    owner = tree
    for key in way:
        if isinstance(owner[key], tuple):  # thawed on the way down
            owner[key] = list(owner[key])
            tuples.append((owner, key))
        owner = owner[key]
    part = owner[last]
    act = rng.random()
    if isinstance(part, torch.Tensor) and act < 0.6:
        owner[last] = tensor_changes(part, rng)
    elif act < 0.7:
        owner[last] = rng.choice(WRONG)
    elif act < 0.8:
        del owner[last]
    elif isinstance(owner, list):
        owner.insert(last, copy.deepcopy(part))
    elif act < 0.9:
        owner[f"{last}_"] = owner.pop(last)
    else:
        owner[last] = [part]
    for owner, key in reversed(tuples):
        owner[key] = tuple(owner[key])
    return tree


def mutations(tree, count, seed):
    """Yield changed copies of nested data, with the place of the change."""
    rng = random.Random(seed)
    for place in few(paths(tree), count, rng):
        yield place, mutated(tree, place, rng)


def refusal(act, *args, **kwargs):
    """Return the line with which something was refused; None if it was not."""
    try:
        act(*args, **kwargs)
    except UserError as error:
        return str(error)
    return None
