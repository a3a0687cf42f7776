"""OVQ attention as plain loops: the specification that every other implementation is tested against.

Online Vector Quantized Attention, Alonso, Figliolia, Millidge 2026, arXiv 2602.03922. One batch row, one head, one
token at a time; every tensor here is a vector or a list of them. A query is computed from the same numbers in the same
order whatever pieces the sequence comes in, so results do not change by a bit with the split.

Letters: `B` rows, `T` tokens, `H` query heads, `G` key/value heads, `Dk`/`Dv` key and value size, `N` capacity, `L`
chunk, `n` slots in use, `m` valid tokens of a chunk.
"""

import math

import torch
from torch import Tensor

from kernels.growth import target_size
from kernels.numerics import counter_hash, gumbel, normalise
from kernels.options import DictionaryOptions
from kernels.schema import Arguments
from kernels.state import DictionaryState


def dot(a: Tensor, b: Tensor) -> Tensor:
    """`a.b` as product and sum: a library's dot product may round otherwise where memory is aligned otherwise."""
    return (a * b).sum()


class Slots:
    """One head's dictionary: for slot i the count `c_i`, the key mean `mu_i [Dk]` and the value mean `nu_i [Dv]`."""

    def __init__(self, state: DictionaryState, row: int, head: int):
        n = int(state.size[row, head])
        self.c = [int(c) for c in state.counts[row, head, :n]]
        self.mu = list(state.keys[row, head, :n])
        self.nu = list(state.values[row, head, :n])
        self.t = int(state.tokens[row])
        self.row, self.head = row, head


def read(
    q: Tensor,
    slots: Slots,
    tokens: list[tuple[Tensor, Tensor]],
    beta: Tensor,
    slot_bias: Tensor,
    options: DictionaryOptions,
) -> Tensor:
    """One query's output: one softmax over the slots and the chunk's tokens so far.

    Args:
        q: `[Dk]` normalised.
        slots: as they stood when the chunk began.
        tokens: normalised keys `[Dk]` and values `[Dv]` of the valid tokens of the chunk up to and including the
            query's own.
        beta: inverse temperature, a scalar.
        slot_bias: a scalar that every slot's logit gets beside the logarithm of its count.
        options: read-out.
    """
    logits, seen = [], []
    for c, mu, nu in zip(slots.c, slots.mu, slots.nu, strict=True):
        if options.read_out == "raw":
            similarity = dot(q, mu)
        elif options.read_out == "unit":
            similarity = dot(q, normalise(mu))
        else:  # gmr: log of a Gaussian at distance |q - mu|, without what all components share
            similarity = dot(q, mu) - dot(mu, mu) / 2
        # A tensor: a number of Python's would make the derivative of `torch.func.jvp` double precision.
        logits.append(beta * similarity + mu.new_tensor(math.log(c)) + slot_bias)
        seen.append(nu)
    for k, v in tokens:
        # A token is a slot of count one. `gmr` subtracts |k|^2 / 2 = 1/2 for it as for every slot.
        similarity = dot(q, k) - dot(k, k) / 2 if options.read_out == "gmr" else dot(q, k)
        logits.append(beta * similarity)
        seen.append(v)
    weights = torch.softmax(torch.stack(logits), 0)
    return weights @ torch.stack(seen)


def similarity_to(k: Tensor, means: list[Tensor]) -> tuple[float, int]:
    """Largest dot product of `k [Dk]` with a mean, and the lowest index that has it."""
    best, index = -math.inf, 0
    for i, mu in enumerate(means):
        s = float(dot(k.detach(), mu.detach()))
        if s > best:
            best, index = s, i
    return best, index


def choose_seeds(
    keys: list[Tensor],
    candidates: list[int],
    wanted: int,
    slots: Slots,
    old: list[Tensor],
    options: DictionaryOptions,
) -> list[int]:
    """At most `wanted` of the tokens `candidates`, which become new slots, in order of position.

    Args:
        keys: the chunk's normalised keys.
        candidates: indices into `keys`.
        wanted: slots to fill.
        slots: says row, head, and how many valid tokens came before the chunk.
        old: means of the slots that count as old.
        options: seeds and their random seed.
    """

    def bits(j: int, *draw: int) -> Tensor:
        position = slots.t + j
        return counter_hash(options.seed, position, position >> 32, slots.row, slots.head, *draw)

    if options.seeds == "spread":
        ranked = sorted(candidates, key=lambda j: (similarity_to(keys[j], old)[0], j))
        return sorted(ranked[:wanted])
    if options.seeds == "random":
        ranked = sorted(candidates, key=lambda j: (int(bits(j)), j))
        return sorted(ranked[:wanted])
    chosen: list[int] = []
    means = list(old)
    for draw in range(min(wanted, len(candidates))):

        def rank(j: int, draw: int = draw, means: list[Tensor] = means) -> tuple[float, int]:
            similarity = similarity_to(keys[j], means)[0]
            if options.seeds == "farthest":
                return similarity, j
            # k-means++ draws in proportion to the squared distance; Gumbel noise on its logarithm does that.
            weight = max(1 - similarity, torch.finfo(torch.float64).tiny)
            return -(math.log(weight) + float(gumbel(bits(j, draw)))), j

        pick = min((j for j in candidates if j not in chosen), key=rank)
        chosen.append(pick)
        means.append(keys[pick])
    return sorted(chosen)


def close_chunk(slots: Slots, tokens: list[tuple[Tensor, Tensor]], options: DictionaryOptions) -> list[int]:
    """The update with the m valid tokens of a chunk; changes `slots`, returns the slot of each token.

    Args:
        slots: one head's dictionary.
        tokens: m normalised keys `[Dk]` and values `[Dv]`.
        options: of the dictionary.
    """
    keys, values = [key for key, _ in tokens], [value for _, value in tokens]
    m, n = len(keys), len(slots.c)
    if m == 0:
        return []

    # 1. Growth: slots that are new.
    target = int(target_size(torch.tensor(slots.t + m), options))
    new = min(max(target - n, 0), m)

    # 2. Seeds. In an empty dictionary the first token becomes slot 0 and counts as old.
    old = list(slots.mu)
    seeds: list[int] = []
    if n == 0:
        seeds, old, new = [0], [keys[0]], new - 1
    candidates = [j for j in range(m) if j not in seeds]
    if options.growth == "novelty":
        candidates = [j for j in candidates if similarity_to(keys[j], old)[0] < options.novelty_threshold]
    seeds = seeds + choose_seeds(keys, candidates, new, slots, old, options)
    for j in seeds:
        slots.c.append(1)
        slots.mu.append(keys[j])
        slots.nu.append(values[j])

    # 3. Every other token goes to its most similar slot.
    competing = old if options.assignment == "old" else list(slots.mu)
    slot_of = {j: n + i for i, j in enumerate(seeds)}
    members: dict[int, list[int]] = {}
    for j in range(m):
        if j not in seeds:
            slot_of[j] = similarity_to(keys[j], competing)[1]
            members.setdefault(slot_of[j], []).append(j)

    # 4. Counts and means.
    for i, joined in members.items():
        a = len(joined)
        slots.c[i] += a
        w = learning_rate(a, slots.c[i], options)
        key = sum((keys[j] for j in joined), torch.zeros_like(keys[0])) / a
        value = sum((values[j] for j in joined), torch.zeros_like(values[0])) / a
        slots.mu[i] = slots.mu[i] + w * (key - slots.mu[i])
        slots.nu[i] = slots.nu[i] + w * (value - slots.nu[i])
    slots.t += m
    return [slot_of[j] for j in range(m)]


def learning_rate(a: int, c: int, options: DictionaryOptions) -> float:
    """Step towards the mean of `a` tokens for a slot that counts `c` with them."""
    adaptive = a / c
    constant = 1 - (1 - options.rate) ** a
    return {"adaptive": adaptive, "constant": constant, "floored": max(adaptive, constant)}[options.learning_rate]


def attention(x: Arguments) -> tuple[Tensor, DictionaryState]:
    """OVQ attention of a whole sequence; plain autograd differentiates it.

    Args:
        x: the call: all numbers in the state's dtype, a mask, a state of B rows.

    Returns:
        Output `[B, T, H, Dv]`, and the state after the T tokens.
    """
    q, k, v, beta, slot_bias, mask, state, options = x
    if mask is None:
        mask = torch.ones(q.shape[:2], dtype=torch.bool, device=q.device)
    (b, t, h, _), heads = q.shape, k.shape[2]
    group = h // heads  # query heads that read one dictionary
    if slot_bias is None:
        slot_bias = torch.zeros_like(beta)
    p, length = state.pending, options.chunk_size
    q, k, v = (x.masked_fill(~mask[..., None, None], 0.0) for x in (q, k, v))  # whatever masked tokens hold
    valid = torch.cat([state.pending_mask, mask], 1)
    kept = (p + t) % length

    outputs, pending_keys, pending_values, dictionaries = [], [], [], []
    for row in range(b):
        for head in range(heads):
            slots = Slots(state, row, head)
            chunk: list[tuple[Tensor, Tensor, bool]] = []  # key, value and validity of the open chunk's positions
            for s in range(p + t):
                if s < p:
                    key, value = state.pending_keys[row, s, head], state.pending_values[row, s, head]
                else:
                    key, value = normalise(k[row, s - p, head]), v[row, s - p, head]
                chunk.append((key, value, bool(valid[row, s])))
                tokens = [(key, value) for key, value, is_valid in chunk if is_valid]
                for i in range(head * group, (head + 1) * group) if s >= p else ():
                    query = normalise(q[row, s - p, i])
                    o = (
                        read(query, slots, tokens, beta[i], slot_bias[i], options)
                        if valid[row, s]
                        else torch.zeros_like(value)
                    )
                    outputs.append(o)
                if len(chunk) == length:
                    close_chunk(slots, tokens, options)
                    chunk = []
            pending_keys += [key for key, _, _ in chunk]
            pending_values += [value for _, value, _ in chunk]
            dictionaries.append(slots)

    def by_position(vectors: list[Tensor], like: Tensor, positions: int) -> Tensor:
        """Vectors in order of row, head and position as `[B, positions, G, D]`, those of a group side by side."""
        if not vectors:
            return like[:, :positions]
        return torch.stack(vectors).view(b, heads, positions, -1).transpose(1, 2)

    final = _collect(dictionaries, state).replace(
        pending_keys=by_position(pending_keys, k, kept),
        pending_values=by_position(pending_values, v, kept),
        pending_mask=valid[:, p + t - kept :],
    )
    return by_position(outputs, v, t).reshape(b, t, h, v.shape[-1]), final


def update(
    state: DictionaryState, k: Tensor, v: Tensor, options: DictionaryOptions, mask: Tensor
) -> tuple[DictionaryState, Tensor]:
    """The specification of `kernels.update`: same arguments (`mask` given, dtypes those of the state), same results."""
    b, t, h, _ = k.shape
    slots_of = torch.full((b, t, h), -1)
    dictionaries = []
    for row in range(state.batch):
        source = range(b) if state.batch == 1 else (row,)
        where = [(r, s) for r in source for s in range(t) if mask[r, s]]
        for head in range(h):
            slots = Slots(state, row, head)
            chosen = close_chunk(slots, [(normalise(k[r, s, head]), v[r, s, head]) for r, s in where], options)
            for (r, s), slot in zip(where, chosen, strict=True):
                slots_of[r, s, head] = slot
            dictionaries.append(slots)
    return _collect(dictionaries, state), slots_of


def _collect(dictionaries: list[Slots], state: DictionaryState) -> DictionaryState:
    """The state that the heads' dictionaries, row after row, make; pending tokens are left as they are in `state`."""
    b, h, n = state.counts.shape

    def stacked(vectors: list[list[Tensor]], like: Tensor) -> Tensor:
        zero = torch.zeros_like(like[0, 0, 0])
        return torch.stack([torch.stack(x + [zero] * (n - len(x))) for x in vectors]).view(like.shape)

    return state.replace(
        counts=torch.tensor([d.c + [0] * (n - len(d.c)) for d in dictionaries]).view(b, h, n),
        keys=stacked([d.mu for d in dictionaries], state.keys),
        values=stacked([d.nu for d in dictionaries], state.values),
        size=torch.tensor([len(d.c) for d in dictionaries]).view(b, h),
        tokens=torch.tensor([d.t for d in dictionaries[::h]]),
    )
