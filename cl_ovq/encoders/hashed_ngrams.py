"""Hashed n-grams of words and characters: features of texts without weights, so without a download (Weinberger et al.
2009, "Feature hashing for large scale multitask learning")."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cl_ovq.encoders.base import ENCODERS, TEXTS, AnyEncoderOptions, Built, Recipe, Source
from cl_ovq.errors import UserError
from cl_ovq.options import option

SHORTEST = 2  # characters of an n-gram


@dataclass
class HashedNGramOptions(AnyEncoderOptions):
    """Hashed n-grams of texts."""

    features: int = option(
        2048,
        "number of features, into which n-grams are hashed; half for words and half for characters if both are counted",
        minimum=2,
        maximum=1 << 20,
    )
    word_ngrams: int = option(1, "longest word n-gram, for languages with spaces; 0: none", minimum=0, maximum=5)
    character_ngrams: int = option(
        5, f"longest character n-gram within a word, starting at {SHORTEST}; 0: none", minimum=0, maximum=10
    )


class HashedNGrams(nn.Module):
    """Counts the n-grams of texts in features that their hashes name, with signs that their hashes give.

    So inner products of features are in expectation those of the counts. Each kind of n-gram has unit length.

    Args:
        words: words of the longest n-gram; 0 for none.
        characters: characters of the longest n-gram; 0 for none.
        features: of a text.
    """

    def __init__(self, words: int, characters: int, features: int) -> None:
        super().__init__()
        from sklearn.feature_extraction.text import HashingVectorizer

        kinds = [("word", (1, words))] * (words > 0) + [("char_wb", (SHORTEST, characters))] * (characters > 0)
        sizes = [len(part) for part in np.array_split(np.arange(features), len(kinds))]
        # One token a word, of single letters too: scikit-learn's own pattern passes those over.
        self.vectorizers = [
            HashingVectorizer(analyzer=kind, ngram_range=lengths, n_features=size, token_pattern=r"(?u)\b\w+\b")
            for (kind, lengths), size in zip(kinds, sizes, strict=True)
        ]

    def forward(self, texts: list[str]) -> Tensor:
        """Map texts to features `[B, F]`, float32."""
        parts = [vectorizer.transform(texts).toarray() for vectorizer in self.vectorizers]
        return torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))


def find_hashed_ngrams(options: HashedNGramOptions, download: bool) -> Source:
    """Return that nothing is needed.

    Raises:
        UserError: there is nothing to be counted.
    """
    if not options.word_ngrams and not options.character_ngrams:
        raise UserError("encoder.word_ngrams: is 0, and so is encoder.character_ngrams: set one of them")
    if 0 < options.character_ngrams < SHORTEST:
        raise UserError(f"encoder.character_ngrams: must be 0, or at least {SHORTEST}")
    return Source(())


@ENCODERS.enter(
    "hashed_ngrams",
    "hashed word and character n-grams of texts, as in scikit-learn: no weights, works offline",
    options=HashedNGramOptions,
    find=find_hashed_ngrams,
    packages=("scikit-learn",),
    reads=TEXTS,
)
def build_hashed_ngrams(options: HashedNGramOptions, recipe: Recipe) -> Built:
    """Build what counts n-grams."""
    return Built(HashedNGrams(options.word_ngrams, options.character_ngrams, options.features))
