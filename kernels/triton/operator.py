"""OVQ attention in Triton, registered as a PyTorch operator: tensors in, tensors out.

`ovq::attention_triton` and its gradient have the arguments of `ovq::attention`; `chunked.attention` puts the state
together around either. Letters: see `calls`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from kernels.registration import Operator, register
from kernels.schema import Arguments, Gradients
from kernels.triton import driver
from kernels.triton.calls import Call
from kernels.triton.driver import ScanResult
from kernels.triton.launch import on, widest
from kernels.triton.observing import is_recording

NAME = "attention_triton"


def _forward(x: Arguments, full_chunks: int, differentiate: bool) -> ScanResult:
    """Outputs, and the rest of a `ScanResult`: of that, all but the final dictionary only to `differentiate`."""
    outputs = _outputs(x, full_chunks, differentiate)
    if not x.q.numel():
        return outputs
    with _launching(x.q.device):
        call = Call(x, full_chunks)
        result = driver.scan_chunks(call, outputs) if full_chunks else outputs
        driver.forward(call, result, differentiate)
    return result if differentiate else ScanResult(*result[:4], *outputs[4:])


@contextmanager
def _launching(device: torch.device) -> Iterator[None]:
    """Without autocast or autograd, on the tensors' GPU."""
    with torch.no_grad(), on(device), ExitStack() as stack:
        if device.type != "meta":
            stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def _outputs(x: Arguments, full_chunks: int, differentiate: bool) -> ScanResult:
    """Outputs of the right shapes; those of the scan are placeholders."""
    (b, t, h, dk), (g, dv), state = x.q.shape, x.v.shape[2:], x.state
    n, written = x.options.capacity, full_chunks * x.options.chunk_size
    rows = b if full_chunks else 0
    kept = rows if differentiate else 0
    integers = torch.int32
    return ScanResult(
        x.v.new_empty(b, t, h, dv),
        state.keys.new_empty(rows, g, n, dk + dv),
        state.counts.new_empty(rows, g, n),
        state.size.new_empty(rows, g),
        state.counts.new_empty(kept, g, written, dtype=integers),
        state.counts.new_empty(kept, g, written, dtype=integers),
        state.counts.new_empty(kept, g, n, dtype=integers),
        state.keys.new_empty(kept, g, n + written, dk + dv, dtype=widest(x.q, x.k, x.v)),
        state.keys.new_empty(kept, g, n + written),
        state.counts.new_empty(kept, g, full_chunks + 1, dtype=integers),
        state.keys.new_empty(b if differentiate else 0, t, h),
    )


def _backward(
    x: Arguments, full_chunks: int, result: ScanResult, d_o: Tensor, d_means: Tensor | None, wants_means: bool
) -> Gradients:
    grads = Gradients.empty(x, full_chunks, wants_means)
    if not x.q.numel():
        return grads
    with _launching(x.q.device):
        return driver.backward(Call(x, full_chunks), result, d_o, d_means, grads)


_SAVED = [name for name in ScanResult._fields if name not in ("means", "size")]
register(Operator(NAME, ScanResult, _SAVED, _forward, _outputs, _backward, is_recording))
