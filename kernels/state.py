"""The state of OVQ dictionaries: a value that goes into functions and comes out of them.

Letters: `B` batch rows, `H` heads, `N` capacity, `Dk` key size, `Dv` value size, `p` pending positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor


def statistics_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """Dtype of means for inputs of these dtypes: fp32, or fp64 where any input is fp64."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


@dataclass(frozen=True, kw_only=True, eq=False)
class DictionaryState:
    """Dictionaries of B rows and H heads, and the tokens of the chunk that is still open.

    Functions that take a state never modify it, and may return one that shares tensors with it.

    Counts are int64: exact for any stream (fp32 stops counting at 2^24), exact under every order of addition,
    available on every device, and left alone when a module that holds them is cast to another floating type.

    The chunk grid is where the pending buffer stands: with p pending positions the next update is after L - p more.
    Positions count masked tokens too, so that all rows close their chunks together; `tokens`, and with it growth,
    counts valid ones only.

    Args:
        counts: `[B, H, N]` int64, tokens that each slot stands for; zero in an empty slot.
        keys: `[B, H, N, Dk]` means of the (normalised) keys of each slot; zero in an empty slot.
        values: `[B, H, N, Dv]` means of its values.
        size: `[B, H]` int64, slots in use; slots 0 to size - 1 are.
        tokens: `[B]` int64, valid tokens absorbed by closed chunks.
        pending_keys: `[B, p, H, Dk]` normalised keys of the open chunk.
        pending_values: `[B, p, H, Dv]` its values.
        pending_mask: `[B, p]` bool, True for a valid token.
    """

    counts: Tensor
    keys: Tensor
    values: Tensor
    size: Tensor
    tokens: Tensor
    pending_keys: Tensor
    pending_values: Tensor
    pending_mask: Tensor

    @classmethod
    def empty(
        cls,
        size: tuple[int, int, int, int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> "DictionaryState":
        """Dictionaries that have seen nothing.

        Args:
            size: B, H, N, Dk and Dv.
            dtype: of the inputs; means are fp32, or fp64 for fp64.
            device: of the tensors.
        """
        batch, heads, capacity, key_dim, value_dim = size
        dtype = statistics_dtype(dtype)
        integers = {"dtype": torch.int64, "device": device}
        return cls(
            counts=torch.zeros(batch, heads, capacity, **integers),  # type: ignore[arg-type]
            keys=torch.zeros(batch, heads, capacity, key_dim, dtype=dtype, device=device),
            values=torch.zeros(batch, heads, capacity, value_dim, dtype=dtype, device=device),
            size=torch.zeros(batch, heads, **integers),  # type: ignore[arg-type]
            tokens=torch.zeros(batch, **integers),  # type: ignore[arg-type]
            pending_keys=torch.zeros(batch, 0, heads, key_dim, dtype=dtype, device=device),
            pending_values=torch.zeros(batch, 0, heads, value_dim, dtype=dtype, device=device),
            pending_mask=torch.zeros(batch, 0, dtype=torch.bool, device=device),
        )

    @property
    def batch(self) -> int:
        """B."""
        return self.counts.shape[0]

    @property
    def heads(self) -> int:
        """H."""
        return self.counts.shape[1]

    @property
    def capacity(self) -> int:
        """N."""
        return self.counts.shape[2]

    @property
    def pending(self) -> int:
        """p, positions of the open chunk that have come."""
        return self.pending_mask.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; an expanded state counts every row."""
        return sum(t.numel() * t.element_size() for t in self.state_dict().values())

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_state_dict(cls, tensors: Mapping[str, Tensor]) -> "DictionaryState":
        """The state that these tensors make.

        Raises:
            ValueError: where names or shapes do not belong together.
        """
        names = {f.name for f in fields(cls)}
        if set(tensors) != names:
            missing, unknown = sorted(names - set(tensors)), sorted(set(tensors) - names)
            raise ValueError(f"not the tensors of a dictionary state: missing {missing}, unknown {unknown}")
        state = cls(**tensors)
        state.check()
        return state

    def check(self) -> None:
        """Raise a ValueError where the tensors' shapes or dtypes contradict each other."""
        if self.counts.dim() != 3 or self.keys.dim() != 4 or self.values.dim() != 4:
            raise ValueError(
                "expected counts [B, H, N], keys [B, H, N, Dk], values [B, H, N, Dv], got "
                f"{list(self.counts.shape)}, {list(self.keys.shape)}, {list(self.values.shape)}"
            )
        b, h, n = self.counts.shape
        p, dk, dv = self.pending, self.keys.shape[-1], self.values.shape[-1]
        expected = {
            "keys": (b, h, n, dk),
            "values": (b, h, n, dv),
            "size": (b, h),
            "tokens": (b,),
            "pending_keys": (b, p, h, dk),
            "pending_values": (b, p, h, dv),
            "pending_mask": (b, p),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(f"{name} must have shape {list(shape)}, got {list(getattr(self, name).shape)}")
        for name in ("counts", "size", "tokens"):
            if getattr(self, name).dtype != torch.int64:
                raise ValueError(f"{name} must be int64, got {getattr(self, name).dtype}")

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "DictionaryState":
        """On another device, or with means of another floating dtype; counts stay integers."""
        moved = {
            name: t.to(device=device, dtype=dtype if t.is_floating_point() else None)
            for name, t in self.state_dict().items()
        }
        return DictionaryState(**moved)

    def detach(self) -> "DictionaryState":
        """The same values, cut from the graph that made them."""
        return DictionaryState(**{name: t.detach() for name, t in self.state_dict().items()})

    def clone(self) -> "DictionaryState":
        """A copy that shares no memory with this one."""
        return DictionaryState(**{name: t.clone() for name, t in self.state_dict().items()})

    def expand(self, batch: int) -> "DictionaryState":
        """B rows that all see the one row of this state, without a copy.

        Raises:
            ValueError: if this state has more than one row and not `batch`.
        """
        if self.batch == batch:
            return self
        if self.batch != 1:
            raise ValueError(f"only a state of one row can serve {batch} rows, this one has {self.batch}")
        return DictionaryState(**{name: t.expand(batch, *t.shape[1:]) for name, t in self.state_dict().items()})

    def reset(self) -> "DictionaryState":
        """An empty state of the same shape, dtype and device."""
        size = (self.batch, self.heads, self.capacity, self.keys.shape[-1], self.values.shape[-1])
        return DictionaryState.empty(size, self.keys.dtype, self.keys.device)

    def replace(self, **tensors: Tensor) -> "DictionaryState":
        """The same state with some tensors exchanged."""
        return replace(self, **tensors)


class Written(NamedTuple):
    """What a write leaves.

    Args:
        state: the dictionaries after it.
        slots: `[B, T, H]` int64, the slot that each token seeded or was assigned to; -1 for a masked token.
        united: `[B, T, H]` int64; for a token whose slot was made free by a union, the slot that now stands for what
            was there (`recycle` growth); -1 for every other.
    """

    state: DictionaryState
    slots: Tensor
    united: Tensor
