"""The table of `tiles`: (kernel, target, fp32 operands, head size up to, default options) -> `Tile`."""

TILES: dict[tuple[str, str, bool, int, bool], tuple[int, ...]] = {}
for _target in ("sm_80", "sm_90", "sm_100", "gfx942"):
    for _wide in (False, True):
        for _head in (64, 128):
            for _plain in (False, True):
                TILES["scan", _target, _wide, _head, _plain] = (64, 32, 8, 1, 32)
                TILES["read", _target, _wide, _head, _plain] = (64, 32, 4, 1)
                TILES["queries_backward", _target, _wide, _head, _plain] = (64, 32, 4, 1)
                TILES["tokens_backward", _target, _wide, _head, _plain] = (32, 32, 4, 1)
                TILES["dictionary_backward", _target, _wide, _head, _plain] = (32, 32, 4, 1)
