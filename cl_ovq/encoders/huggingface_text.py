"""Text models of transformers: weights of the hub or of a folder, with the tokenizer that lies beside them."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cl_ovq.encoders.base import ENCODERS, TEXTS, AnyEncoderOptions, Built, Recipe, Source
from cl_ovq.encoders.hub import hub_folder
from cl_ovq.encoders.huggingface import CONFIG, model_of, read_model, read_settings
from cl_ovq.errors import UserError, first_line
from cl_ovq.options import option
from cl_ovq.paths import expanded, is_folder

MAX_LENGTH = 512  # tokens, where nothing else is said: longer texts take memory with the square of their length
# What a tokenizer consists of; one of the vocabularies must be there.
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json")
TOKENIZER = (*VOCABULARIES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass
class HuggingFaceTextOptions(AnyEncoderOptions):
    """A text model of transformers."""

    weights: str | None = option(
        None,
        "a model on the Hub, sentence-transformers/all-MiniLM-L6-v2, or a folder written by save_pretrained",
    )
    pool: str = option(
        "mean",
        "pooling of tokens: the mean over the text, including special tokens, or the first (the class token)",
        choices=("mean", "first"),
    )
    max_length: int | None = option(
        None,
        "tokens read per text, including special tokens; the rest is cut off and counted in results.json; "
        f"the model's maximum if null, at most {MAX_LENGTH}",
        minimum=3,
        maximum=1 << 20,
    )
    precision: str = option(
        "float32",
        "computation dtype; half-precision features are stored as float16",
        choices=("float32", "float16", "bfloat16"),
    )


class TextModel(nn.Module):
    """A tokenizer, a model, and what makes one vector of its last hidden states.

    Args:
        model: of transformers.
        tokenizer: of transformers.
        pool: `mean` or `first`.
        max_length: tokens of a text that are read.
    """

    def __init__(self, model: Any, tokenizer: Any, *, pool: str, max_length: int) -> None:
        super().__init__()
        self.model: Any = _encoder(model)
        self.tokenizer = tokenizer
        self.pool = pool
        self.max_length = max_length

    def forward(self, texts: list[str]) -> Tensor:
        """Map texts to features `[B, F]`."""
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(next(self.model.parameters()).device)
        hidden: Tensor = self.model(**tokens).last_hidden_state.float()
        if self.pool == "first":
            return hidden[:, 0]
        own = tokens["attention_mask"][:, :, None].float()
        return (hidden * own).sum(1) / own.sum(1)

    def truncation(self, texts: list[str]) -> dict[str, int]:
        """Return how many tokens of a text are read, and how many of these texts have more."""
        lengths = map(len, self.tokenizer(texts, verbose=False)["input_ids"])
        return {"max_tokens": self.max_length, "truncated": sum(length > self.max_length for length in lengths)}


def find_huggingface_text(options: HuggingFaceTextOptions, download: bool) -> Source:
    """Find a text model of transformers.

    Raises:
        UserError: it is not there, or not whole, or reads no text.
    """
    name = options.weights
    if name is None:
        raise UserError(
            "encoder.weights: set a text model on the Hub, e.g. sentence-transformers/all-MiniLM-L6-v2, or a folder "
            "with "
            "one; encoder.name=hashed_ngrams works offline"
        )
    place, patterns = expanded(name), ("*.json", "*.safetensors", "*.txt")
    folder = place if is_folder(place) else hub_folder(name, patterns, download=download, offline="hashed_ngrams")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"encoder.weights: '{name}' has no .safetensors weights: save_pretrained writes them")
    files = [folder / file for file in TOKENIZER if (folder / file).is_file()]
    if not any(file.name in VOCABULARIES for file in files):
        raise UserError(
            f"encoder.weights: '{name}' has no tokenizer ({', '.join(VOCABULARIES)}): it is not a text model, or its "
            "tokenizer was not saved with it"
        )
    recipe = {"config": read_settings(folder / CONFIG), "tokenizer": {file.name: _text(file) for file in files}}
    return Source((*weights, folder / CONFIG, *files), recipe, len(weights))


def load_huggingface_text(built: Built, source: Source) -> None:
    """Put the weights of a folder into a model, as transformers does: it knows older names of them.

    Raises:
        UserError: some are missing.
    """
    network: Any = built.network
    network.model.load_state_dict(_encoder(read_model(source.files[0].parent)).state_dict())


@ENCODERS.enter(
    "huggingface_text",
    "a text model from transformers (BERT, MiniLM, RoBERTa, E5, ...), from the Hub or a folder",
    options=HuggingFaceTextOptions,
    find=find_huggingface_text,
    load=load_huggingface_text,
    packages=("transformers", "tokenizers"),
    reads=TEXTS,
)
def build_huggingface_text(options: HuggingFaceTextOptions, recipe: Recipe) -> Built:
    """Build a text model of transformers with its tokenizer.

    Raises:
        UserError: the library is not installed, knows no such model or tokenizer, or the model reads fewer tokens.
    """
    model = model_of(recipe["config"])
    if model.main_input_name != "input_ids":
        raise UserError(f"encoder.weights: a model of type '{model.config.model_type}' does not read text")
    tokenizer = _tokenizer(recipe)
    limits = (tokenizer.model_max_length, getattr(_encoder(model).config, "max_position_embeddings", None))
    limit = min(length for length in limits if length)
    if (options.max_length or 0) > limit:
        raise UserError(f"encoder.max_length: {options.max_length} is too large: the model reads {limit} tokens")
    max_length = options.max_length or min(limit, MAX_LENGTH)
    return Built(TextModel(model, tokenizer, pool=options.pool, max_length=max_length))


def _tokenizer(recipe: Recipe) -> Any:
    """Return the tokenizer whose files a recipe holds; no code in them is run."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, CONFIG).write_text(json.dumps(recipe["config"]), encoding="utf-8")
        for name in TOKENIZER:
            if name in recipe["tokenizer"]:
                Path(folder, name).write_text(recipe["tokenizer"][name], encoding="utf-8")
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # of whatever kind: it may be any file
            raise UserError(f"encoder.weights: the tokenizer cannot be read: {first_line(error)}") from error
    if tokenizer.pad_token is None:  # models that continue text have none; what it is does not matter, being masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.padding_side = "right"  # the first token is the text's own
    return tokenizer


def _encoder(model: Any) -> Any:
    """Return what of a model reads text: the encoder where there is a decoder, and that half of CLIP and its kin."""
    return model.get_encoder() if model.config.is_encoder_decoder else getattr(model, "text_model", model)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"encoder.weights: {path} cannot be read: {first_line(error)}") from error
