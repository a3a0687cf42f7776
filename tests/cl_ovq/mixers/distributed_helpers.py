"""What one of several processes of a distributed run does: in its own file, which a new process can import."""

import os
from contextlib import ExitStack

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cl_ovq.mixers import OVQAttention, dictionaries
from kernels import DictionaryOptions

WIDTH, RANKS, STEPS = 8, 2, 4


def network():
    """Two layers with shared dictionaries, the same on every call."""
    torch.manual_seed(0)
    options = DictionaryOptions(capacity=6, chunk_size=8)
    layers = [
        OVQAttention(width=WIDTH, heads=2, options=options, persistent=True, half_life=20, dictionary_weight=2.0)
        for _ in range(2)
    ]
    return Stack(layers).double()


class Stack(nn.Module):
    """Layers in turn, with residual connections."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x, mask):
        """x `[B, T, C]`, mask `[B, T]`."""
        for layer in self.layers:
            x = x + layer(x, mask=mask)[0]
        return x


def batch(step, rank):
    """Tokens `[B, T, C]` and mask `[B, T]` of a rank at a step, of unlike sizes; at the last step rank 1 has none."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    rows = 0 if step == STEPS - 1 and rank else 1 + rank + step % 2
    x = torch.randn(rows, 3 + rank, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.rand(rows, 3 + rank, generator=generator) < 0.8


def record(model, x, mask, run=None):
    """A pass whose tokens all dictionaries record."""
    with ExitStack() as stack:
        for dictionary in dictionaries(model).values():
            stack.enter_context(dictionary.recording())
        return (run or model)(x, mask)


def train(model, ranks, run=None):
    """Train on the batches of some ranks, as so many passes of each step; return all buffers after every write."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    history = []

    def write():
        for dictionary in dictionaries(model).values():
            dictionary.write()
        history.append({name: buffer.clone() for name, buffer in model.named_buffers()})

    for step in range(STEPS):
        for dictionary in dictionaries(model).values():
            dictionary.begin_task(step // 2)
        optimizer.zero_grad()
        for rank in ranks:
            y = record(model, *batch(step, rank), run)
            (y.square().sum() / len(ranks)).backward()
        optimizer.step()
        write()
    if 0 in ranks:
        record(model, *batch(STEPS, 0))
    else:  # this rank has no pass to record, but takes part in the write
        for dictionary in dictionaries(model).values():
            with dictionary.recording():
                pass
    write()
    return history


def work(rank, folder):
    """One process of two: train under DDP, and leave what the dictionaries were."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    model = network()
    torch.save(train(model, [rank], DistributedDataParallel(model)), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()
