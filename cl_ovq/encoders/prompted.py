"""A frozen vision transformer of timm's with prompts in its blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_ovq.encoders.network import EncoderNetwork
from cl_ovq.encoders.prompts import PromptOptions, Prompts, Site
from cl_ovq.errors import UserError

Prefix = tuple[Tensor, Tensor]


class PrefixAttention(nn.Module):
    """The attention of a frozen block, whose queries may see further keys and values (Li and Liang 2021).

    They stand beside the projected keys and values of the tokens, as in the published code of DualPrompt and
    CODA-Prompt; in their papers they would be projected too. Dropout rests, as in the whole transformer.

    Args:
        attention: timm's, whose layers it takes over.
    """

    prefix: Prefix | None = None

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads: int = attention.num_heads
        self.scale: float = attention.scale
        self.qkv, self.q_norm, self.k_norm = attention.qkv, attention.q_norm, attention.k_norm
        self.norm = getattr(attention, "norm", nn.Identity())  # older versions have none
        self.proj = attention.proj

    def forward(self, x: Tensor, **unmasked: Any) -> Tensor:
        """Map tokens `[B, T, C]` to tokens; every token sees all others."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.prefix is not None:
            keys, values = (part.unflatten(2, (self.heads, -1)).transpose(1, 2).to(k) for part in self.prefix)
            k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(self.norm(mixed.transpose(1, 2).flatten(2)))


class PromptedTransformer(nn.Module):
    """A frozen vision transformer that prompts enter, chosen by each image's class token without them.

    The features are the class token, or the mean over the tokens of prompts where there are such, as in L2P. Where
    these stand among the others changes nothing: positions were added before.

    Args:
        transformer: timm's `VisionTransformer`.
        prompts: that enter.
    """

    def __init__(self, transformer: Any, prompts: Prompts) -> None:
        super().__init__()
        self.transformer = transformer
        self.prompts = prompts
        for block in transformer.blocks:
            block.attn = PrefixAttention(block.attn)

    def forward(self, images: Tensor) -> Tensor:
        """Map preprocessed images `[B, channels, height, width]` to features `[B, C]`."""
        with torch.no_grad():
            tokens = self._embedded(images)
            query = self._through(tokens, {})[:, 0].float()
        with torch.autocast(images.device.type, enabled=False):  # a choice must not depend on few bits
            inserted = self.prompts(query)
        if inserted.tokens is None:
            features: Tensor = self.transformer.forward_head(self._through(tokens, inserted.prefixes), pre_logits=True)
            return features
        length = inserted.tokens.shape[1]
        return self._through(torch.cat([tokens, inserted.tokens.to(tokens)], dim=1), {})[:, -length:].mean(1)

    def _embedded(self, images: Tensor) -> Tensor:
        """Return the tokens that the first block is given."""
        whole = self.transformer
        return whole.norm_pre(whole.patch_drop(whole._pos_embed(whole.patch_embed(images))))

    def _through(self, tokens: Tensor, prefixes: Mapping[int, Prefix]) -> Tensor:
        """Return what the last block makes of tokens, normalised."""
        for number, block in enumerate(self.transformer.blocks):
            block.attn.prefix = prefixes.get(number)
            try:
                tokens = block(tokens)
            finally:
                block.attn.prefix = None  # a copy of the model must hold no part of a graph
        return self.transformer.norm(tokens)


def prompted(network: EncoderNetwork, options: PromptOptions, experiences: int) -> EncoderNetwork:
    """Put prompts into an encoder, which alone are trained; the rest computes in evaluation mode.

    Args:
        network: the encoder, with its weights.
        options: of the strategy that the prompts are of.
        experiences: of the stream.

    Raises:
        UserError: it is no vision transformer of timm's with a class token, or the options do not fit it.
    """
    network.requires_grad_(False)
    transformer: Any = network.backbone
    _check_transformer(transformer)
    site = Site(transformer.embed_dim, len(transformer.blocks), experiences)
    network.backbone = PromptedTransformer(transformer, options.prompts(site))
    network.still = ("preprocess", "backbone.transformer")
    return network.train(network.training)


def _check_transformer(backbone: Any) -> None:
    known = (
        "prompts enter a vision transformer of timm's with a class token, such as encoder.name=timm "
        "encoder.model=vit_small_patch16_224"
    )
    try:
        from timm.layers import Attention
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        Attention = VisionTransformer = ()
    if not isinstance(backbone, VisionTransformer):
        raise UserError(f"encoder.name: its network is not a timm vision transformer: {known}")
    attentions = [getattr(block, "attn", None) for block in backbone.blocks]
    if any(type(found) is not Attention or getattr(found, "gate", None) is not None for found in attentions):
        raise UserError(f"encoder.model: its blocks have an unsupported attention: {known}")
    if backbone.cls_token is None or backbone.global_pool != "token":
        raise UserError(f"encoder.model: its features are not a class token: {known}")
