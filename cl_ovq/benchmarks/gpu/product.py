"""A 64 x 64 product of a transposed product by Triton, held against fp64: prints an error for each type.

Some assemblers give wrong numbers for it on Hopper (flash-linear-attention issue 1262, Triton issue 11781).
"""

import sys

import torch
import triton
import triton.language as tl

from kernels.triton.arithmetic import dot, narrow

SIZE = tl.constexpr(64)


@triton.jit
def transposed_product(a, b, c, out, DTYPE: tl.constexpr):
    """`out = (a b)^T c`, each a contiguous `[64, 64]`."""
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    zero = tl.zeros([SIZE, SIZE], tl.float32)
    inner = dot(tl.load(a + at), tl.load(b + at), zero, "tf32x3")
    tl.store(out + at, dot(narrow(tl.trans(inner), DTYPE), tl.load(c + at), zero, "tf32x3"))


def main(device: str) -> None:
    """Print name and relative root mean square of the error, a type a line."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(3, 64, 64, generator=generator) / 8
    for dtype, name in ((torch.bfloat16, tl.bfloat16), (torch.float16, tl.float16), (torch.float32, tl.float32)):
        a, b, c = exact.to(device, dtype)
        out = torch.full((64, 64), torch.nan, device=device)
        transposed_product[(1,)](a, b, c, out, name, num_warps=4)
        wanted = (a.double() @ b.double()).T @ c.double()
        error = (out.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
        print(str(dtype).removeprefix("torch."), float(error))


if __name__ == "__main__":
    main(sys.argv[1])
