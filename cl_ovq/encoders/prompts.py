"""Prompts: vectors that are learned and enter a frozen vision transformer, chosen for each sample by itself.

Letters: `B` samples, `C` features of a token, `P` tokens of a prompt, `T` experiences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.errors import UserError
from cl_ovq.options import WIDEST, option

DEEPEST = 9_999  # block of a transformer


class Site(NamedTuple):
    """Where prompts go.

    Attributes:
        width: C.
        depth: blocks of the transformer.
        experiences: T, of the whole stream.
    """

    width: int
    depth: int
    experiences: int


@dataclass(frozen=True)
class Inserted:
    """What enters a transformer with a batch.

    Attributes:
        tokens: `[B, P, C]` beside those of the images; None for none.
        prefixes: keys and values `[B, P, C]` beside those of the tokens, by the number of the block.
    """

    tokens: Tensor | None = None
    prefixes: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Prompts(nn.Module, ABC):
    """The prompts of a method. In training mode they are those of the experience that is learned.

    Attributes:
        losses: where a forward pass leaves what it adds to the training loss (scalars), if anything collects it.
        experience: the one that is learned, or was last, a scalar int64.
    """

    experience: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] | None = None
        self.register_buffer("experience", torch.tensor(0))

    def begin(self, experience: int) -> None:
        """Begin to learn an experience."""
        self.experience.fill_(experience)

    @abstractmethod
    def forward(self, query: Tensor) -> Inserted:
        """Return what enters with samples whose class tokens without prompts are `query` `[B, C]`."""


class PromptOptions:
    """The options of a strategy that puts prompts into the encoder."""

    def prompts(self, site: Site) -> Prompts:
        """Return the prompts, drawn anew.

        Raises:
            UserError: options do not fit the transformer or the stream.
        """
        raise NotImplementedError


@dataclass
class L2POptions(PromptOptions):
    """The pool of L2P."""

    pool_size: int = option(10, "number of prompts in the pool (M in the paper)", minimum=1, maximum=WIDEST)
    prompt_length: int = option(5, "tokens per prompt", minimum=1, maximum=WIDEST)
    top_k: int = option(5, "prompts per sample: those with the nearest keys (N)", minimum=1, maximum=WIDEST)
    match_weight: float = option(
        0.5, "loss weight of the distance between a sample's query and the selected keys", minimum=0, adjustable=True
    )

    def prompts(self, site: Site) -> Prompts:
        """Return the pool."""
        if self.top_k > self.pool_size:
            raise UserError(f"strategy.top_k: {self.top_k} is too large: strategy.pool_size is {self.pool_size}")
        return PromptPool(self, site)


class PromptPool(Prompts):
    """L2P (Wang et al. 2022, arXiv 2112.08654): each sample takes the prompts whose keys are nearest to its query.

    Near is by cosine. All prompts and keys are learned in every experience. The published code lets
    a batch vote and gives all its samples the same prompts, as the paper does not.

    Args:
        options: of the pool.
        site: where prompts go.
    """

    def __init__(self, options: L2POptions, site: Site) -> None:
        super().__init__()
        self.top_k, self.weight = options.top_k, options.match_weight
        self.keys = nn.Parameter(torch.empty(options.pool_size, site.width).uniform_(-1, 1))
        self.values = nn.Parameter(torch.empty(options.pool_size, options.prompt_length, site.width).uniform_(-1, 1))

    def forward(self, query: Tensor) -> Inserted:
        """Return the nearest prompts as tokens."""
        near = functional.cosine_similarity(query[:, None], self.keys, dim=2)
        chosen = near.argsort(dim=1, descending=True, stable=True)[:, : self.top_k]
        if self.losses is not None:
            self.losses.append(self.weight * (1 - near.gather(1, chosen)).sum(1).mean())
        return Inserted(self.values[chosen].flatten(1, 2))


@dataclass
class DualPromptOptions(PromptOptions):
    """The general and the expert prompts of DualPrompt."""

    general_length: int = option(5, "number of keys, and of values, in the general prompt", minimum=1, maximum=WIDEST)
    general_blocks: list[int] = option(  # noqa: RUF009 - option makes a field
        [0, 1], "blocks with the general prompt; the first is 0", minimum=0, maximum=DEEPEST
    )
    expert_length: int = option(20, "number of keys, and of values, in an expert prompt", minimum=1, maximum=WIDEST)
    expert_blocks: list[int] = option([2, 3, 4], "blocks with the expert prompt", minimum=0, maximum=DEEPEST)  # noqa: RUF009
    match_weight: float = option(
        1.0,
        "loss weight of the distance between a sample's query and the key of its expert prompt",
        minimum=0,
        adjustable=True,
    )

    def prompts(self, site: Site) -> Prompts:
        """Return the prompts."""
        check_blocks("general_blocks", self.general_blocks, site)
        check_blocks("expert_blocks", self.expert_blocks, site)
        if both := set(self.general_blocks) & set(self.expert_blocks):
            raise UserError(f"strategy.expert_blocks: block {min(both)} is also in strategy.general_blocks")
        return DualPrompts(self, site)


class DualPrompts(Prompts):
    """DualPrompt (Wang et al. 2022, arXiv 2204.04799): a prompt for all experiences, and one for each, as prefixes.

    In training a sample gets its experience's expert prompt, and that one's key is pulled to its query; in evaluation
    the expert prompt of the nearest key, among those of the experiences so far. Those of other experiences rest.

    Args:
        options: of the prompts.
        site: where prompts go.
    """

    def __init__(self, options: DualPromptOptions, site: Site) -> None:
        super().__init__()
        self.weight = options.match_weight
        self.general_blocks, self.expert_blocks = list(options.general_blocks), list(options.expert_blocks)
        shapes = (
            (len(self.general_blocks), 2, options.general_length, site.width),
            (len(self.expert_blocks), 2, options.expert_length, site.width),
        )
        self.general = nn.Parameter(torch.empty(shapes[0]).uniform_(-1, 1))
        # A parameter for each experience: an optimizer leaves those alone that have no gradient.
        self.experts = nn.ParameterList(torch.empty(shapes[1]).uniform_(-1, 1) for _ in range(site.experiences))
        self.keys = nn.ParameterList(torch.empty(site.width).uniform_(-1, 1) for _ in range(site.experiences))

    def begin(self, experience: int) -> None:
        """Let the expert prompt of an experience learn, and no other."""
        super().begin(experience)
        train_only(self.experts, experience)
        train_only(self.keys, experience)

    def forward(self, query: Tensor) -> Inserted:
        """Return the prefixes."""
        now = int(self.experience)
        near = functional.cosine_similarity(query[:, None], torch.stack(list(self.keys[: now + 1])), dim=2)
        if self.losses is not None:
            self.losses.append(self.weight * (1 - near[:, now]).mean())
        if self.training:
            experts = self.experts[now].expand(len(query), -1, -1, -1, -1)
        else:
            experts = torch.stack(list(self.experts[: now + 1]))[near.argmax(1)]
        general = self.general.expand(len(query), -1, -1, -1, -1)
        return Inserted(prefixes=_prefixes(self.general_blocks, general) | _prefixes(self.expert_blocks, experts))


@dataclass
class CODAPromptOptions(PromptOptions):
    """The components of CODA-Prompt."""

    components: int = option(
        100, "total number of components, split evenly among experiences (M in the paper)", minimum=1, maximum=WIDEST
    )
    prompt_length: int = option(
        8, "number of keys and values in a prompt, half of them keys", minimum=2, maximum=WIDEST
    )
    blocks: list[int] = option(  # noqa: RUF009
        [0, 1, 2, 3, 4], "blocks with prompts; the first is 0", minimum=0, maximum=DEEPEST
    )
    orthogonality: float = option(
        0.1,
        "weight of the orthogonality penalty on components, keys and attention vectors",
        minimum=0,
        adjustable=True,
    )

    def prompts(self, site: Site) -> Prompts:
        """Return the components."""
        check_blocks("blocks", self.blocks, site)
        if self.prompt_length % 2:
            raise UserError(
                f"strategy.prompt_length: {self.prompt_length} is odd: half of the keys and values must be keys"
            )
        if self.components < site.experiences:
            raise UserError(
                f"strategy.components: {self.components} is too small: each of {site.experiences} experiences needs "
                "at least one"
            )
        return ComponentPrompts(self, site)


class ComponentPrompts(Prompts):
    """CODA-Prompt (Smith et al. 2023, arXiv 2211.13218): a prompt is a weighted sum of components, a prefix.

    `p = sum_m cos(q * A_m, K_m) P_m` in each block, over the components of the experiences so far: each experience
    learns its own, and those of past ones rest. The penalty is the mean square of `B B' - I` for B the rows of P, K and
    A, as in the published code: the paper's norm has no gradient at zero, and all of them are drawn orthonormal, as
    there.

    Args:
        options: of the components.
        site: where prompts go.
    """

    def __init__(self, options: CODAPromptOptions, site: Site) -> None:
        super().__init__()
        self.weight, self.blocks = options.orthogonality, list(options.blocks)
        share = options.components // site.experiences
        shape = (len(self.blocks), share * site.experiences)
        values = _orthonormal(*shape, options.prompt_length * site.width).unflatten(2, (-1, site.width))
        drawn = (values, _orthonormal(*shape, site.width), _orthonormal(*shape, site.width))
        self.values, self.keys, self.attention = (
            nn.ParameterList(part.clone() for part in whole.split(share, dim=1)) for whole in drawn
        )

    def begin(self, experience: int) -> None:
        """Let the components of an experience learn, and no others."""
        super().begin(experience)
        for parts in (self.values, self.keys, self.attention):
            train_only(parts, experience)

    def forward(self, query: Tensor) -> Inserted:
        """Return the sums as prefixes."""
        values, keys, attention = (
            torch.cat(list(parts[: int(self.experience) + 1]), dim=1)  # [blocks, M, ...]
            for parts in (self.values, self.keys, self.attention)
        )
        if self.losses is not None and self.weight:
            rows = (values.flatten(2), keys, attention)
            self.losses.append(self.weight * torch.stack([_dependence(part) for part in rows]).sum())
        weights = functional.cosine_similarity(query[:, None, None] * attention, keys, dim=3)
        prompts = torch.einsum("bnm,nmpc->bnpc", weights, values)
        return Inserted(prefixes=_prefixes(self.blocks, prompts.unflatten(2, (2, -1))))


def _prefixes(blocks: Iterable[int], prompts: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Return keys and values by the number of the block, of prompts `[B, blocks, 2, P, C]`."""
    return {block: (part[:, 0], part[:, 1]) for block, part in zip(blocks, prompts.unbind(1), strict=True)}


def _orthonormal(blocks: int, rows: int, width: int) -> Tensor:
    """Draw matrices `[blocks, rows, width]` of orthonormal rows, or columns where there are more rows than these."""
    return torch.stack([nn.init.orthogonal_(torch.empty(rows, width)) for _ in range(blocks)])


def _dependence(rows: Tensor) -> Tensor:
    """Return how far rows `[blocks, M, F]` are from orthonormal: the mean square over each block, summed over them."""
    away = rows @ rows.mT - torch.eye(rows.shape[1], device=rows.device)
    return away.square().mean((1, 2)).sum()


def train_only(parts: nn.ParameterList, number: int) -> None:
    """Let one of several parameters learn."""
    for other, part in enumerate(parts):
        part.requires_grad_(other == number)
        if other != number:
            part.grad = None


def check_blocks(key: str, blocks: list[int], site: Site) -> None:
    """Check that a transformer has blocks.

    Raises:
        UserError: it has not, or one is named twice.
    """
    for number, block in enumerate(blocks):
        if block >= site.depth:
            raise UserError(f"strategy.{key}: there is no block {block}: the transformer has 0 to {site.depth - 1}")
        if block in blocks[:number]:
            raise UserError(f"strategy.{key}: block {block} is listed twice")
