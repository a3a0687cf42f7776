"""Whole-dictionary operations: one dictionary out of two, and another capacity.

Both shrink by uniting slots as Ward's method does: of all pairs, those whose union adds least to the squared distance
of the tokens from their means, `c_i c_j / (c_i + c_j) |mu_i - mu_j|^2`. Counts and count-weighted means are conserved.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels.state import DictionaryState


def merge(a: DictionaryState, b: DictionaryState, capacity: int | None = None) -> DictionaryState:
    """One dictionary that has seen what two have: the union of their slots, shrunk where it exceeds the capacity.

    Where the union fits, the merged dictionary is exactly the mixture of both.

    Args:
        a: dictionaries without pending tokens.
        b: the same model's, of the same rows, heads and sizes; any capacity.
        capacity: of the result; that of `a` if None.

    Raises:
        ValueError: if their shapes do not fit or tokens are pending.
    """
    for state in (a, b):
        _check_closed(state)
    if (a.batch, a.heads, a.keys.shape[-1], a.values.shape[-1]) != (
        b.batch,
        b.heads,
        b.keys.shape[-1],
        b.values.shape[-1],
    ):
        raise ValueError(
            f"cannot merge dictionaries of keys {list(a.keys.shape)} and values {list(a.values.shape)} with "
            f"{list(b.keys.shape)} and {list(b.values.shape)}: rows, heads and sizes must be equal"
        )
    counts = torch.cat([a.counts, b.counts], 2)
    order = torch.argsort((counts == 0).byte(), dim=-1, stable=True)  # slots in use first
    union = a.replace(
        counts=counts.gather(2, order),
        keys=_gather(torch.cat([a.keys, b.keys], 2), order),
        values=_gather(torch.cat([a.values, b.values], 2), order),
        size=a.size + b.size,
        tokens=a.tokens + b.tokens,
    )
    return resize(union, a.capacity if capacity is None else capacity)


def resize(state: DictionaryState, capacity: int) -> DictionaryState:
    """The same dictionaries with another capacity: more empty slots, or slots united until all fit.

    Args:
        state: any state; pending tokens stay pending.
        capacity: N of the result.

    Raises:
        ValueError: if the capacity is not positive.
    """
    if capacity < 1:
        raise ValueError(f"capacity must be positive, got {capacity}")
    b, h, n = state.counts.shape
    used = int(state.size.max()) if state.size.numel() else 0
    if used > capacity:
        united = [_shrink(state, i, j, capacity) for i in range(b) for j in range(h)]
        counts, keys, values = (torch.stack(x).view(b, h, capacity, *x[0].shape[1:]) for x in zip(*united, strict=True))
        return state.replace(counts=counts, keys=keys, values=values, size=state.size.clamp(max=capacity))
    more = capacity - n  # negative: cuts empty slots only
    return state.replace(
        counts=pad(state.counts, (0, more)),
        keys=pad(state.keys, (0, 0, 0, more)),
        values=pad(state.values, (0, 0, 0, more)),
    )


def _check_closed(state: DictionaryState) -> None:
    if state.pending:
        raise ValueError(f"the state has {state.pending} pending tokens of an open chunk: merge needs closed ones")


def _gather(means: Tensor, order: Tensor) -> Tensor:
    return means.gather(2, order[..., None].expand(*order.shape, means.shape[-1]))


def _shrink(state: DictionaryState, row: int, head: int, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counts `[N]`, keys `[N, Dk]`, values `[N, Dv]` of one head with at most N = `capacity` slots in use.

    In rounds, each uniting pairs that are each other's nearest, cheapest first: for Ward's cost that gives what
    uniting one pair at a time gives, except in the last round, which stops at the capacity.
    """
    n = int(state.size[row, head])
    counts, keys, values = state.counts[row, head, :n], state.keys[row, head, :n], state.values[row, head, :n]
    while n > capacity:
        first, second = _nearest_pairs(counts, keys, n - capacity)
        weight = (counts[second].double() / (counts[first] + counts[second]).double()).to(keys.dtype)[:, None]
        keys = keys.index_put((first,), torch.lerp(keys[first], keys[second], weight))
        values = values.index_put((first,), torch.lerp(values[first], values[second], weight))
        counts = counts.index_put((first,), counts[first] + counts[second])
        left = torch.ones(n, dtype=torch.bool, device=counts.device).index_fill_(0, second, False)
        counts, keys, values = counts[left], keys[left], values[left]
        n = counts.shape[0]
    more = capacity - n
    return pad(counts, (0, more)), pad(keys, (0, 0, 0, more)), pad(values, (0, 0, 0, more))


def _nearest_pairs(counts: Tensor, keys: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """At most `most` disjoint pairs (lower, higher index) that are each other's cheapest union, cheapest first."""
    n = counts.shape[0]
    c, mu = counts.double(), keys.detach().double()
    nearest = torch.empty(n, dtype=torch.int64, device=keys.device)
    cost = torch.empty(n, dtype=torch.float64, device=keys.device)
    index = torch.arange(n, device=keys.device)
    for part in index.split(max(1, (1 << 22) // n)):
        distance = torch.cdist(mu[part], mu, compute_mode="donot_use_mm_for_euclid_dist").square()
        union = c[part, None] * c / (c[part, None] + c) * distance
        union.nan_to_num_(nan=torch.finfo(union.dtype).max)  # slots of NaN unite last
        union[torch.arange(len(part), device=keys.device), part] = torch.inf
        cost[part], nearest[part] = union.min(1)
    mutual = (nearest[nearest] == index) & (index < nearest)
    first = index[mutual]
    if len(first) == 0:  # only where rounding makes the costs of equal slots differ: unite the cheapest pair
        first = cost.argmin()[None]
    first = first[cost[first].argsort(stable=True)][:most]
    second = nearest[first]
    return torch.minimum(first, second), torch.maximum(first, second)
