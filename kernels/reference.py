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
from kernels.state import DictionaryState, Written

Pair = tuple[Tensor, Tensor]  # a token, or a slot: normalised key `[Dk]` and value `[Dv]`, or the means of both


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

    def pairs(self) -> list[Pair]:
        """The means of all slots."""
        return list(zip(self.mu, self.nu, strict=True))

    def unite(self, i: int, other: int) -> None:
        """Let slot i stand for the tokens of `other` too, which then holds nothing of its own."""
        share = self.c[other] / (self.c[i] + self.c[other])
        self.mu[i] = self.mu[i] + share * (self.mu[other] - self.mu[i])
        self.nu[i] = self.nu[i] + share * (self.nu[other] - self.nu[i])
        self.c[i] += self.c[other]


def read(
    q: Tensor,
    slots: Slots,
    tokens: list[Pair],
    beta: Tensor,
    slot_bias: Tensor,
    options: DictionaryOptions,
) -> Tensor:
    """One query's output: one softmax over the slots and the chunk's tokens so far.

    Args:
        q: `[Dk]`, normalised where `options` say so.
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
            product = dot(q, mu)
        elif options.read_out == "unit":
            product = dot(q, normalise(mu))
        else:  # gmr: log of a Gaussian at distance |q - mu|, without what all components share
            product = dot(q, mu) - dot(mu, mu) / 2
        # A tensor: a number of Python's would make the derivative of `torch.func.jvp` double precision.
        logits.append(beta * product + mu.new_tensor(math.log(c)) + slot_bias)
        seen.append(nu)
    for k, v in tokens:
        # A token is a slot of count one. `gmr` subtracts |k|^2 / 2 = 1/2 for it as for every slot.
        product = dot(q, k) - dot(k, k) / 2 if options.read_out == "gmr" else dot(q, k)
        logits.append(beta * product)
        seen.append(v)
    weights = torch.softmax(torch.stack(logits), 0)
    return weights @ torch.stack(seen)


def similarity(a: Pair, b: Pair, options: DictionaryOptions) -> float:
    """How much alike two are where slots are chosen: `k.mu + w cos(v, nu)`."""
    of_keys = float(dot(a[0].detach(), b[0].detach()))
    if options.value_weight == 0:  # then values do not matter, not even those that are NaN
        return of_keys
    return of_keys + options.value_weight * float(dot(normalise(a[1].detach()), normalise(b[1].detach())))


def nearest(token: Pair, slots: dict[int, Pair], options: DictionaryOptions) -> tuple[float, int]:
    """Largest similarity of a token to a slot, and the lowest slot that has it; minus infinity and 0 without any."""
    best, index = -math.inf, 0
    for i in sorted(slots):
        s = similarity(token, slots[i], options)
        if s > best:
            best, index = s, i
    return best, index


def choose_seeds(
    tokens: list[Pair],
    candidates: list[int],
    wanted: int,
    slots: Slots,
    old: dict[int, Pair],
    options: DictionaryOptions,
) -> list[int]:
    """At most `wanted` of the tokens `candidates`, which become new slots, in order of position.

    Args:
        tokens: of the chunk.
        candidates: indices into `tokens`.
        wanted: slots to fill.
        slots: says row, head, and how many valid tokens came before the chunk.
        old: the slots that count as old.
        options: seeds and their random seed.
    """

    def bits(j: int, *draw: int) -> Tensor:
        position = slots.t + j
        return counter_hash(options.seed, position, position >> 32, slots.row, slots.head, *draw)

    if options.seeds == "spread":
        ranked = sorted(candidates, key=lambda j: (nearest(tokens[j], old, options)[0], j))
        return sorted(ranked[:wanted])
    if options.seeds == "random":
        ranked = sorted(candidates, key=lambda j: (int(bits(j)), j))
        return sorted(ranked[:wanted])
    chosen: list[int] = []
    seen = dict(old)
    for draw in range(min(wanted, len(candidates))):

        def rank(j: int, draw: int = draw, seen: dict[int, Pair] = seen) -> tuple[float, int]:
            alike = nearest(tokens[j], seen, options)[0]
            if options.seeds == "farthest":
                return alike, j
            # k-means++ draws in proportion to the squared distance; Gumbel noise on its logarithm does that.
            weight = max(1 + options.value_weight - alike, torch.finfo(torch.float64).tiny)
            return -(math.log(weight) + float(gumbel(bits(j, draw)))), j

        pick = min((j for j in candidates if j not in chosen), key=rank)
        chosen.append(pick)
        seen[len(seen)] = tokens[pick]
    return sorted(chosen)


def unions(slots: dict[int, Pair], options: DictionaryOptions) -> list[tuple[float, int, int]]:
    """The pairs of slots that are each other's nearest, most similar first: similarity, lower and higher slot."""
    others = {i: nearest(slots[i], {j: slots[j] for j in slots if j != i}, options) for i in slots}
    pairs = [(s, i, j) for i, (s, j) in others.items() if i < j and others[j][1] == i and s > -math.inf]
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1]))


def close_chunk(slots: Slots, tokens: list[Pair], options: DictionaryOptions) -> tuple[list[int], list[int]]:
    """The update with the m valid tokens of a chunk; changes `slots`.

    Args:
        slots: one head's dictionary.
        tokens: m normalised keys `[Dk]` and values `[Dv]`.
        options: of the dictionary.

    Returns:
        The slot of each token, and for a token whose slot became free by a union the slot that united with it; -1 for
        every other.
    """
    m, n = len(tokens), len(slots.c)
    united = [-1] * m
    if m == 0:
        return [], []

    # 1. Growth: slots that are new.
    target = int(target_size(torch.tensor(slots.t + m), options))
    new = min(max(target - n, 0), m)

    # 2. Seeds. In an empty dictionary the first token becomes slot 0 and counts as old.
    before = dict(enumerate(slots.pairs()))
    old, seeds = dict(before), []
    if n == 0:
        seeds, old, new = [0], {0: tokens[0]}, new - 1
    candidates = [j for j in range(m) if j not in seeds]
    if options.growth == "novelty":
        threshold = options.novelty_threshold * (1 + options.value_weight)
        candidates = [j for j in candidates if nearest(tokens[j], old, options)[0] < threshold]
    seeds = seeds + choose_seeds(tokens, candidates, new, slots, old, options)
    for key, value in (tokens[j] for j in seeds):
        slots.c.append(1)
        slots.mu.append(key)
        slots.nu.append(value)
    slot_of = {j: n + i for i, j in enumerate(seeds)}

    # 3. Room in a full dictionary: the slots that are most alike unite, for the tokens that are least like any slot,
    # seed, or token that might become one before them.
    if options.growth == "recycle":
        alike = {j: nearest(tokens[j], old, options)[0] for j in range(m) if j not in slot_of}
        earlier = [tokens[j] for j in seeds]
        for j in sorted(alike, key=lambda j: (alike[j], j)):
            alike[j] = max(alike[j], nearest(tokens[j], dict(enumerate(earlier)), options)[0])
            earlier.append(tokens[j])
        waiting = sorted(alike, key=lambda j: (alike[j], j))
        for j, (likeness, i, free) in zip(waiting, unions(before, options), strict=False):
            if likeness <= alike[j]:
                break
            slots.unite(i, free)
            slots.c[free], slots.mu[free], slots.nu[free] = 1, *tokens[j]
            slot_of[j], united[j] = free, i

    # 4. Every other token goes to its most similar slot.
    competing = dict(enumerate(slots.pairs()))
    if options.assignment == "old":
        taken = {slot_of[j] for j in range(m) if united[j] >= 0}
        competing = {i: competing[i] for i in old.keys() - taken}
    members: dict[int, list[int]] = {}
    for j in range(m):
        if j not in slot_of:
            slot_of[j] = nearest(tokens[j], competing, options)[1]
            members.setdefault(slot_of[j], []).append(j)

    # 5. Counts and means.
    for i, joined in members.items():
        a = len(joined)
        slots.c[i] += a
        w = learning_rate(a, slots.c[i], options)
        key = sum((tokens[j][0] for j in joined), torch.zeros_like(tokens[0][0])) / a
        value = sum((tokens[j][1] for j in joined), torch.zeros_like(tokens[0][1])) / a
        slots.mu[i] = slots.mu[i] + w * (key - slots.mu[i])
        slots.nu[i] = slots.nu[i] + w * (value - slots.nu[i])
    slots.t += m
    return [slot_of[j] for j in range(m)], united


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
                    query = normalise(q[row, s - p, i]) if options.query_norm else q[row, s - p, i]
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
            return like.new_zeros(b, positions, heads, like.shape[-1])
        return torch.stack(vectors).view(b, heads, positions, -1).transpose(1, 2)

    final = _collect(dictionaries, state).replace(
        pending_keys=by_position(pending_keys, k, kept),
        pending_values=by_position(pending_values, v, kept),
        pending_mask=valid[:, p + t - kept :],
    )
    return by_position(outputs, v, t).reshape(b, t, h, v.shape[-1]), final


def write(state: DictionaryState, k: Tensor, v: Tensor, options: DictionaryOptions, mask: Tensor) -> Written:
    """The specification of `kernels.write`: same arguments (`mask` given, dtypes those of the state), same results."""
    b, t, h, _ = k.shape
    chosen = torch.full((2, b, t, h), -1)
    dictionaries = []
    for row in range(state.batch):
        source = range(b) if state.batch == 1 else (row,)
        where = [(r, s) for r in source for s in range(t) if mask[r, s]]
        for head in range(h):
            slots = Slots(state, row, head)
            found = close_chunk(slots, [(normalise(k[r, s, head]), v[r, s, head]) for r, s in where], options)
            for (r, s), *of_token in zip(where, *found, strict=True):
                chosen[:, r, s, head] = torch.tensor(of_token)
            dictionaries.append(slots)
    return Written(_collect(dictionaries, state), *chosen)


def update(
    state: DictionaryState, k: Tensor, v: Tensor, options: DictionaryOptions, mask: Tensor
) -> tuple[DictionaryState, Tensor]:
    """The specification of `kernels.update`: same arguments (`mask` given, dtypes those of the state), same results."""
    return write(state, k, v, options, mask)[:2]


def _collect(dictionaries: list[Slots], state: DictionaryState) -> DictionaryState:
    """The state that the heads' dictionaries, row after row, make; pending tokens are left as they are in `state`."""
    b, h, n = state.counts.shape
    if not dictionaries:
        return state

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
