"""Which tokens of a chunk become slots, and which slot every other token goes to: the discrete half of an update.

Nothing here carries a gradient. Letters: `B` rows, `H` heads, `m` tokens of the chunk, `n` slots looked at, `D` key
size.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.growth import target_size
from kernels.numerics import counter_hash, gumbel, normalise
from kernels.options import DictionaryOptions
from kernels.recycling import Room, make_room, union_of, unite_
from kernels.threads import run, threads_for

_TILE = 1 << 19  # similarities that a thread holds at once: a large batch write must not need m x n of them
_DEVICE_TILE = 1 << 26  # and another device, which has more to do at a time
_GROUP = 32


class Assignment(NamedTuple):
    """What an update does with each token.

    Args:
        slots: `[B, H, m]` int64, slot that the token seeds or is assigned to; -1 for a masked token.
        seeds: `[B, H, m]` bool, True where the token seeds its slot.
        united: `[B, H, m]` int64, see `recycling.Room`; None where no slots unite.
    """

    slots: Tensor
    seeds: Tensor
    united: Tensor | None = None


class Dictionary(NamedTuple):
    """What the choice of slots looks at: dictionaries before an update.

    Args:
        keys: `[B, H, n, Dk]` means of at least all slots in use.
        values: `[B, H, n, Dv]` likewise.
        counts: `[B, H, n]` likewise.
        size: `[B, H]` slots in use.
        tokens: `[B]` valid tokens absorbed before.
        origin: row and head, of all that a call has, that come first here: random choices depend on them.
    """

    keys: Tensor
    values: Tensor
    counts: Tensor
    size: Tensor
    tokens: Tensor
    origin: tuple[int, int] = (0, 0)


def features(keys: Tensor, values: Tensor, options: DictionaryOptions) -> Tensor:
    """What tokens and slots are compared by, as dot products: `k.mu + w cos(v, nu)`, where w is `value_weight`.

    Args:
        keys: `[..., Dk]`.
        values: `[..., Dv]`.
        options: of the dictionary.
    """
    if options.value_weight == 0:
        return keys
    return torch.cat([keys, math.sqrt(options.value_weight) * normalise(values)], -1)


def best_match(
    keys: Tensor, means: Tensor, size: Tensor, hidden: Tensor | None = None, *, among: str = "all"
) -> tuple[Tensor, Tensor]:
    """Largest dot product of each key with a slot's mean, and the lowest slot that has it.

    A product that is NaN counts as minus infinity, so that a key of NaN matches nothing and finds slot 0.

    Args:
        keys: `[B, H, m, D]`.
        means: `[B, H, n, D]`, n > 0.
        size: `[B, H]`, slots of `means` that count.
        hidden: `[B, H, n]` bool, slots among them that do not; None for none.
        among: where a key is the mean of its own number: `others` for all but itself, `earlier` for those before it.

    Returns:
        similarity `[B, H, m]`, minus infinity where no slot counts or all products are NaN; slot `[B, H, m]` int64.
    """
    b, h, m, _ = keys.shape
    n = means.shape[2]
    padded = -(-n // _GROUP) * _GROUP
    if int(size.min()) < n:
        empty = torch.arange(n, device=means.device) >= size[..., None]
        hidden = empty if hidden is None else hidden | empty
    if hidden is not None:
        hidden = hidden.view(b * h, 1, n)
    keys, means = keys.flatten(0, 1), means.flatten(0, 1)
    similarity, slot = keys.new_empty(b * h, m), torch.empty(b * h, m, dtype=torch.int64, device=keys.device)

    def search(start: int, stop: int) -> None:
        scores = keys.new_empty(b * h, stop - start, padded)
        torch.bmm(keys[:, start:stop], means.mT, out=scores[..., :n])
        scores[..., n:] = -torch.inf
        if hidden is not None:
            scores[..., :n].masked_fill_(hidden, -torch.inf)
        if among != "all":
            own, number = torch.arange(start, stop, device=keys.device)[:, None], torch.arange(n, device=keys.device)
            scores[..., :n].masked_fill_(number == own if among == "others" else number >= own, -torch.inf)
        best, index = _first_max(scores)
        if bool(best.isnan().any()):  # one NaN among the scores is enough
            best, index = _first_max(scores.masked_fill_(scores.isnan(), -torch.inf))
        similarity[:, start:stop], slot[:, start:stop] = best, index

    threads = threads_for(b * h * m * padded, keys.device)
    if threads:
        rows = max(1, min(_TILE // (b * h * padded), -(-m // threads)))
    else:
        rows = max(1, _DEVICE_TILE // (b * h * padded))
    run([partial(search, start, min(start + rows, m)) for start in range(0, m, rows)], threads)
    return similarity.view(b, h, m), slot.view(b, h, m)


def _first_max(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum and its first index over the last dimension, a multiple of `_GROUP`.

    On a CPU `max` with indices is scalar code and `amax` is not: first the maximum of each group, then the search
    within one.
    """
    if scores.device.type != "cpu":
        best = scores.max(-1)
        return best.values, best.indices
    grouped = scores.unflatten(-1, (-1, _GROUP))
    best, group = grouped.amax(-1).max(-1)
    within = grouped.gather(2, group[..., None, None].expand(*group.shape, 1, _GROUP)).squeeze(2)
    return best, group * _GROUP + within.argmax(-1)


@torch.no_grad()
def choose_slots(
    k: Tensor, v: Tensor, valid: Tensor | None, dictionary: Dictionary, options: DictionaryOptions
) -> tuple[Assignment, Tensor]:
    """Steps 1 to 4 of the update: new slots, their seeds, room in a full dictionary, the assignment of all others.

    Args:
        k: `[B, H, m, Dk]` normalised.
        v: `[B, H, m, Dv]`.
        valid: `[B, m]` bool; None if all are.
        dictionary: before the update.
        options: growth, seeds, assignment, weight of values.

    Returns:
        The assignment, and `[B, H]` int64 slots in use afterwards.
    """
    (b, h, m, _), size, tokens = k.shape, dictionary.size, dictionary.tokens
    x, means = features(k, v, options), features(dictionary.keys, dictionary.values, options)
    arrived = torch.full_like(tokens, m) if valid is None else valid.sum(-1)
    new = (target_size(tokens + arrived, options)[:, None] - size).clamp_(min=0).minimum(arrived[:, None])  # [B, H]
    similarity, nearest = best_match(x, means, size) if means.shape[2] else _nothing(x)
    recycles = options.growth == "recycle"
    if not recycles and not bool(new.any()):  # no slot to seed, so no empty dictionary with a token either
        return Assignment(
            nearest if valid is None else nearest.masked_fill(~valid[:, None], -1),
            torch.zeros_like(nearest, dtype=torch.bool),
        ), size

    everyone = torch.ones(b, h, m, dtype=torch.bool, device=k.device)
    valid = everyone if valid is None else valid[:, None].expand(b, h, m)
    candidates, old, first = valid, size, None
    if int(size.min()) == 0:  # in an empty dictionary the chunk's first valid token becomes slot 0 and counts as old
        empty = (size == 0)[..., None]
        first = valid & (valid.cumsum(-1) == 1) & empty  # [B, H, m], at most one per row and head
        to_first = _similarity_to(x, first)
        similarity = torch.where(empty, to_first, similarity)
        nearest = torch.where(empty, 0, nearest)
        candidates, old, new = valid & ~first, size + first.sum(-1), new - first.sum(-1)
    if options.growth == "novelty":
        candidates = candidates & (similarity < options.novelty_threshold * (1 + options.value_weight))
        new = new.minimum(candidates.sum(-1))

    seeds = chosen = _choose_seeds(x, similarity, candidates, new, options, partial(_bits, valid, dictionary))
    if first is not None:
        seeds = chosen | first
    room = None
    if recycles and means.shape[2] and bool((valid & ~seeds).any()):
        likeness, partner = best_match(means, means, size, among="others")
        waiting = valid & ~seeds
        room = make_room(likeness, partner, _to_earlier(x, similarity, seeds, waiting), waiting)
        if room is not None:
            similarity, nearest = _match_united((k, v), x, room, dictionary, options, (similarity, nearest))
    if options.assignment == "all" and bool(chosen.any()):
        nearest = _match_seeds(x, chosen, old, similarity, nearest)
    count = seeds.cumsum(-1)
    slots = torch.where(seeds, size[..., None] - 1 + count, nearest)  # new slots in order of position
    if room is not None:
        taken = room.slots >= 0
        slots, seeds = torch.where(taken, room.slots, slots), seeds | taken
    if valid is not everyone:
        slots = slots.masked_fill(~valid, -1)
    return Assignment(slots, seeds, room.united if room else None), size + count[..., -1]


def _to_earlier(x: Tensor, similarity: Tensor, seeds: Tensor, waiting: Tensor) -> Tensor:
    """Similarity `[B, H, m]` of waiting tokens to slots and to tokens that have, or might get, one before them.

    These are the `seeds`, and those that wait and are less like any old slot, to which `similarity` is.
    """
    rank = similarity.masked_fill(seeds, -torch.inf).masked_fill(~seeds & ~waiting, torch.inf)
    order = rank.argsort(dim=-1, stable=True)
    ordered = x.gather(2, order[..., None].expand_as(x))
    to_earlier, _ = best_match(ordered, ordered, torch.full_like(order[..., 0], x.shape[2]), among="earlier")
    return similarity.maximum(torch.empty_like(similarity).scatter_(-1, order, to_earlier))


def _match_united(
    tokens: tuple[Tensor, Tensor],
    x: Tensor,
    room: Room,
    dictionary: Dictionary,
    options: DictionaryOptions,
    found: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """What `best_match` finds for the tokens once slots are united, and the freed ones begun anew by their tokens.

    Args:
        tokens: keys and values of the chunk.
        x: their features.
        room: the unions.
        dictionary: before the update.
        options: of the dictionary.
        found: what was found before the unions, which stands where there are none.
    """
    taken = room.slots >= 0
    keys, values = (x.clone(memory_format=torch.contiguous_format) for x in (dictionary.keys, dictionary.values))
    union = union_of(room.slots, room.united, dictionary.counts, keys.dtype)
    assert union is not None  # there is room
    for means, of_tokens in zip((keys, values), tokens, strict=True):
        unite_(means, union)
        means.view(-1, means.shape[-1])[union.freed] = of_tokens[taken]
    hidden = None
    if options.assignment == "old":
        hidden = torch.zeros_like(dictionary.counts, dtype=torch.bool)
        hidden.view(-1)[union.freed] = True
    similarity, nearest = best_match(x, features(keys, values, options), dictionary.size, hidden)
    here = taken.any(-1, keepdim=True)
    return torch.where(here, similarity, found[0]), torch.where(here, nearest, found[1])


def _nothing(keys: Tensor) -> tuple[Tensor, Tensor]:
    similarity = keys.new_full(keys.shape[:3], -torch.inf)
    return similarity, torch.zeros_like(similarity, dtype=torch.int64)


def _match_seeds(keys: Tensor, seeds: Tensor, first_new: Tensor, similarity: Tensor, nearest: Tensor) -> Tensor:
    """Slots `[B, H, m]` when seeds, numbered from `first_new [B, H]` by position, compete with the old slots."""
    count = seeds.sum(-1)
    order = torch.argsort(seeds.logical_not().byte(), dim=-1, stable=True)[..., : int(count.max())]
    seed_keys = keys.gather(2, order[..., None].expand(*order.shape, keys.shape[-1]))
    seed_similarity, which = best_match(keys, seed_keys, count)
    # On a tie the old slot wins: its number is lower.
    return torch.where(seed_similarity > similarity, first_new[..., None] + which, nearest)


def _bits(valid: Tensor, dictionary: Dictionary, seed: int, *draw: int) -> Tensor:
    """Random bits for each token, of which `valid [B, H, m]` are; no split of a sequence changes them."""
    b, h, _ = valid.shape
    row = torch.arange(dictionary.origin[0], dictionary.origin[0] + b, device=valid.device)[:, None, None]
    head = torch.arange(dictionary.origin[1], dictionary.origin[1] + h, device=valid.device)[:, None]
    position = dictionary.tokens[:, None, None] + valid.cumsum(-1) - 1  # counted in valid tokens
    return counter_hash(seed, position, position >> 32, row, head, *draw)


def _choose_seeds(
    keys: Tensor,
    similarity: Tensor,
    candidates: Tensor,
    wanted: Tensor,
    options: DictionaryOptions,
    bits: Callable[..., Tensor],
) -> Tensor:
    """`wanted [B, H]` of the `candidates [B, H, m]`, who suffice, as bool `[B, H, m]`, by `options.seeds`.

    Chance is what `bits` gives, see `_bits`, for a seed and a draw.
    """
    if options.seeds == "spread":
        return _lowest(similarity, candidates, wanted)
    if options.seeds == "random":
        return _lowest(bits(options.seed).double(), candidates, wanted)

    chosen = torch.zeros_like(candidates)
    for draw in range(int(wanted.max())):
        left = candidates & ~chosen & (wanted > draw)[..., None]
        if options.seeds == "farthest":
            rank = similarity
        else:
            # Features have the squared length 1 + w, so that 1 + w - similarity is half the squared distance; adding
            # Gumbel noise to its logarithm and taking the largest draws in proportion to it.
            noise = gumbel(bits(options.seed, draw))
            half_square = 1 + options.value_weight - similarity.double()
            rank = -(half_square.clamp(min=torch.finfo(torch.float64).tiny).log() + noise)
        pick = _lowest(rank, left, (wanted > draw).long())
        chosen = chosen | pick
        to_pick = _similarity_to(keys, pick).masked_fill(~pick.any(-1, keepdim=True), -torch.inf)
        similarity = torch.maximum(similarity, to_pick)
    return chosen


def _similarity_to(keys: Tensor, one: Tensor) -> Tensor:
    """Dot products `[B, H, m]` of keys with the one of each head that `one [B, H, m]` names; NaN as in `best_match`."""
    key = keys.masked_fill(~one[..., None], 0.0).sum(2, keepdim=True)  # [B, H, 1, D]
    products = (keys @ key.mT).squeeze(-1)
    return products.masked_fill_(products.isnan(), -torch.inf)


def _lowest(rank: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """The `count [B, H]` candidates `[B, H, m]` of lowest rank, the earlier position first on ties."""
    order = rank.masked_fill(~candidates, torch.inf).argsort(dim=-1, stable=True)
    taken = torch.arange(rank.shape[-1], device=rank.device) < count[..., None]
    return torch.empty_like(candidates).scatter_(-1, order, taken)
