"""`python -m kernels.native` compiles the library of native code, once, for this machine."""

import sys

from kernels.native.library import build

try:
    print(build())
except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
