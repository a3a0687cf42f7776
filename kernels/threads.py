"""Threads of one core each, for work that comes in independent jobs.

A matrix product of one chunk is too small to share among cores, and what lies between two products is smaller still:
every attempt makes all cores wait for the last one, which on a busy machine takes longer than the work. A job of its
own for each thread waits once, at the end.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

_WORTH_THREADS = 1 << 18  # scores of a call for which starting threads pays


def threads_for(scores: int, device: torch.device) -> int:
    """Threads that a call with so many logits should use; zero leaves the choice to torch."""
    if device.type != "cpu":
        return 0
    return torch.get_num_threads() if scores >= _WORTH_THREADS else 1


def run(jobs: Sequence[Callable[[], None]], threads: int) -> None:
    """Run all jobs, on so many threads of one core each; with zero, here and as torch likes."""
    if threads == 0:
        for job in jobs:
            job()
        return

    def work(job: Callable[[], None]) -> None:
        with torch.no_grad():  # grad mode is a thread's own, and a new thread starts with it on
            job()

    before = torch.get_num_threads()
    try:
        if threads == 1 or len(jobs) == 1:
            torch.set_num_threads(1)
            for job in jobs:
                job()
        else:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for _ in pool.map(work, jobs):
                    pass
    finally:
        torch.set_num_threads(before)  # torch gives threads yet to come what any thread set last
