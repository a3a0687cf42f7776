"""Mends Triton's interpreter, which runs kernels where there is no GPU."""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter


def mend() -> None:
    """Make the interpreter work with NumPy 2.5 (Triton 3.6), and several times as fast.

    Triton 3.6 takes `int` of arrays of one element, which NumPy 2.5 refuses. And every version prepares its language
    anew for each function that a kernel calls; once per module and launch will do.
    """
    patch_tensor = interpreter._patch_lang_tensor
    run = interpreter.InterpretedFunction.run
    prepared: set[int] = set()

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepared.clear()
        return run(self, *args, **kwargs)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = id(self.fn.__globals__)
        if module not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(module)
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang_tensor = patch
    interpreter.InterpretedFunction.run = launch
    interpreter.InterpretedFunction.__call__ = call
