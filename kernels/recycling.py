"""Room in a full dictionary: slots that are alike unite, and tokens that are less like any slot get what becomes free.

What unites is two slots' statistics: counts add up, and the mean of both is the mean of all their tokens. So the
dictionary still stands for every token it was given, those of the past a little more coarsely.

Letters: `B` rows, `H` heads, `N` slots, `n` of them looked at, `m` tokens of the chunk, `D` features of a mean.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Room(NamedTuple):
    """The slots that become free.

    Args:
        slots: `[B, H, m]` int64, the slot that becomes free for a token; -1 where none does.
        united: `[B, H, m]` int64, the slot that stands for its tokens from then on; -1 likewise.
    """

    slots: Tensor
    united: Tensor


def make_room(likeness: Tensor, partner: Tensor, similarity: Tensor, waiting: Tensor) -> Room | None:
    """Unite pairs of slots for tokens: the pairs most alike for the tokens least like any slot, while that gains.

    A pair is two slots that are each other's nearest, so that none is in two pairs. The i-th pair unites for the i-th
    token if its two slots are more alike than the token is to anything that has a slot.

    Args:
        likeness: `[B, H, n]` similarity of each slot to the nearest other one; minus infinity where there is none.
        partner: `[B, H, n]` int64, that one.
        similarity: `[B, H, m]` of each token to the nearest of the slots and of the tokens that come before it.
        waiting: `[B, H, m]` bool, the tokens that have no slot of their own yet.

    Returns:
        None if nothing unites.
    """
    n, m = partner.shape[-1], similarity.shape[-1]
    number = torch.arange(n, device=partner.device)
    lower = (partner.gather(-1, partner) == number) & (number < partner)
    likeness = likeness.masked_fill(~lower, -torch.inf)
    most = min(n // 2, m)
    first = likeness.argsort(dim=-1, descending=True, stable=True)[..., :most]
    likeness, second = likeness.gather(-1, first), partner.gather(-1, first)
    similarity = similarity.masked_fill(~waiting, torch.inf)
    token = similarity.argsort(dim=-1, stable=True)[..., :most]
    gains = likeness > similarity.gather(-1, token)  # true for the first few, as both are in order
    if not bool(gains.any()):
        return None
    nothing = torch.full_like(similarity, -1, dtype=torch.int64)
    slots, united = (nothing.scatter(-1, token, x.masked_fill(~gains, -1)) for x in (second, first))
    return Room(slots, united)


class Union(NamedTuple):
    """The unions of an update, `u` over all rows and heads.

    Args:
        kept: `[u]` row, in means `[B H N, D]`, of the slot that stays.
        freed: `[u]` row of the slot that unites with it.
        share: `[u]` share of the freed slot's tokens in those of both.
        counts: `[B, H, N]` int64 after the unions.
    """

    kept: Tensor
    freed: Tensor
    share: Tensor
    counts: Tensor


def union_of(slots: Tensor, united: Tensor | None, counts: Tensor, dtype: torch.dtype) -> Union | None:
    """Return the unions of an update; None if there are none.

    Args:
        slots: `[B, H, m]` int64, the slot of each token.
        united: see `Room`; None for no unions.
        counts: `[B, H, N]` before.
        dtype: of the means.
    """
    if united is None:
        return None
    where = united >= 0
    if not bool(where.any()):
        return None
    b, h, n = counts.shape
    offset = torch.arange(0, b * h * n, n, device=counts.device).view(b, h, 1)
    kept, freed = ((x + offset)[where] for x in (united, slots))
    flat = counts.flatten()
    of_freed, both = flat[freed], flat[freed] + flat[kept]
    flat = flat.index_put((kept,), both).index_fill(0, freed, 0)
    return Union(kept, freed, (of_freed.double() / both.double()).to(dtype)[:, None], flat.view(b, h, n))


def unite_(means: Tensor, union: Union) -> None:
    """Bring contiguous means `[B, H, N, D]` in place to what they are after the unions; freed slots are then zero."""
    flat = means.view(-1, means.shape[-1])
    kept, freed = flat[union.kept], flat[union.freed]
    flat[union.kept] = kept + union.share * (freed - kept)
    flat[union.freed] = 0.0


def unite_backward_(gradient: Tensor, union: Union) -> None:
    """Bring the gradient of the means after the unions, `[B, H, N, D]`, in place to that of the means before."""
    flat = gradient.view(-1, gradient.shape[-1])
    of_kept = flat[union.kept]
    flat[union.freed] = union.share * of_kept
    flat[union.kept] = (1 - union.share) * of_kept
