"""OVQ attention chunk by chunk in matrix products.

Letters: `B` rows, `T` tokens, `H` heads, `Dk`/`Dv` key and value size, `N` capacity, `L` chunk, `n` slots in use.
"""

import torch
from torch import Tensor

from kernels.numerics import normalise
from kernels.options import DictionaryOptions
from kernels.selection import choose_slots
from kernels.state import DictionaryState
from kernels.writing import update_weights, write


def attention(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, options: DictionaryOptions, mask: Tensor, state: DictionaryState
) -> tuple[Tensor, DictionaryState]:
    """See `reference.attention`: same arguments, same results."""
    b, t, h, _ = q.shape
    p, length = state.pending, options.chunk_size
    q, k = normalise(q).transpose(1, 2), normalise(k).transpose(1, 2)
    keys = torch.cat([state.pending_keys.transpose(1, 2), k], 2)  # [B, H, p + T, Dk]
    values = torch.cat([state.pending_values.transpose(1, 2), v.transpose(1, 2)], 2)
    valid = torch.cat([state.pending_mask, mask], 1)  # [B, p + T]
    keys, values = (x.masked_fill(~valid[:, None, :, None], 0.0) for x in (keys, values))

    outputs = []
    for start in range(0, p + t, length):
        stop = min(start + length, p + t)
        chunk = slice(start, stop)
        k_c, v_c, valid_c = keys[:, :, chunk], values[:, :, chunk], valid[:, chunk]
        q_c = q[:, :, max(start - p, 0) : stop - p]
        if q_c.shape[2]:
            outputs.append(read(q_c, k_c, v_c, valid_c, beta, options, state))
        if stop - start == length:
            used = int(state.size.max()) if state.size.numel() else 0
            choice = choose_slots(k_c, valid_c, state.keys[:, :, :used], state.size, state.tokens, options)
            weights = update_weights(choice, state.counts, options, keys.dtype)
            state = state.replace(
                counts=weights.counts,
                keys=write(state.keys, k_c, choice, weights),
                values=write(state.values, v_c, choice, weights),
                size=choice.size,
                tokens=state.tokens + valid_c.sum(-1),
            )
    kept = (p + t) % length
    start = p + t - kept
    final = state.replace(
        pending_keys=keys[:, :, start:].transpose(1, 2),
        pending_values=values[:, :, start:].transpose(1, 2),
        pending_mask=valid[:, start:],
    )
    o = torch.cat(outputs, 2).transpose(1, 2) if outputs else torch.zeros_like(v)
    return o, final


def read(
    q: Tensor, k: Tensor, v: Tensor, valid: Tensor, beta: Tensor, options: DictionaryOptions, state: DictionaryState
) -> Tensor:
    """Outputs `[B, H, s, Dv]` of the chunk's last s positions, `q [B, H, s, Dk]`; k, v hold the chunk so far, `[B, H, m, .]`."""
    used = int(state.size.max()) if state.size.numel() else 0
    mu, nu, c = state.keys[:, :, :used], state.values[:, :, :used], state.counts[:, :, :used]
    if options.read_out == "unit":
        mu = normalise(mu)
    scale = beta[:, None, None]
    q = q * scale
    slot_logits = q @ mu.mT + c.to(q.dtype).log()[:, :, None]
    token_logits = q @ k.mT
    if options.read_out == "gmr":
        slot_logits = slot_logits - scale * mu.square().sum(-1)[:, :, None] / 2
        token_logits = token_logits - scale * k.square().sum(-1)[:, :, None] / 2
    s, m = q.shape[2], k.shape[2]
    seen = torch.ones(s, m, dtype=torch.bool, device=q.device).tril(m - s) & valid[:, None, None]
    token_logits = token_logits.masked_fill(~seen, -torch.inf)
    logits = torch.cat([slot_logits, token_logits], -1)
    mine = valid[:, None, -s:, None]  # a masked query reads nothing; its row must not be all minus infinity
    weights = torch.softmax(logits.masked_fill(~mine, 0.0), -1).masked_fill(~mine, 0.0)
    return weights[..., :used] @ nu.expand(*weights.shape[:2], *nu.shape[2:]) + weights[..., used:] @ v
