"""Processes that train together write each other's tokens: their dictionaries stay one."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # pytest imports test files by path, and new processes look here

from distributed_helpers import RANKS, STEPS, network, train, work


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_two_ranks_write_what_one_process_with_both_batches_writes(tmp_path):
    """Bit for bit alike on both ranks; to rounding in the single process, whose gradients add up in another order."""
    torch.multiprocessing.spawn(work, (str(tmp_path),), RANKS)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS))
    alone = train(network(), range(RANKS))
    assert len(alone) == len(first) == STEPS + 1
    for step, expected in enumerate(alone):
        assert first[step].keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(first[step][name], second[step][name]), name
            if step == 0 and ".0." in name:  # before any gradient, and of the first layer, the same bits
                assert torch.equal(first[step][name], tensor), name
            torch.testing.assert_close(first[step][name], tensor)
    assert alone[-1]["layers.0.dictionary.written"].sum() > alone[0]["layers.0.dictionary.written"].sum()
