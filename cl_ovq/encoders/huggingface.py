"""Vision models of transformers: weights of the hub or of a folder, with the preprocessing that lies beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cl_ovq.encoders.base import ENCODERS, Built, EncoderOptions, Recipe, Source, needed
from cl_ovq.encoders.hub import hub_folder
from cl_ovq.encoders.preprocessing import Preprocessing
from cl_ovq.errors import UserError, first_line
from cl_ovq.options import option
from cl_ovq.paths import expanded, is_folder

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them


@dataclass
class HuggingFaceOptions(EncoderOptions):
    """A model of transformers."""

    weights: str | None = option(
        None, "a model on the Hub, facebook/dinov2-small, or a folder written by save_pretrained"
    )
    pool: str = option(
        "first",
        "pooling of tokens [tokens, channels] into a vector: the first (the class token), the mean, or "
        "flattened; maps [channels, height, width] are averaged",
        choices=("mean", "first", "flatten"),
    )


class HiddenStates(nn.Module):
    """The last hidden states of a model, or what it makes of images where it reads text, too.

    Args:
        model: of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = getattr(model, "vision_model", model)
        self.pooled = self.model is not model

    def forward(self, images: Tensor) -> Tensor:
        """Map preprocessed images to tokens `[B, T, C]`, a map `[B, C, H, W]`, or features `[B, C]`."""
        output = self.model(pixel_values=images)
        found: Tensor = output.pooler_output if self.pooled else output.last_hidden_state
        return found


def find_huggingface(options: HuggingFaceOptions, download: bool) -> Source:
    """Find a model of transformers.

    Raises:
        UserError: it is not there, or not whole.
    """
    name = options.weights
    if name is None:
        raise UserError("encoder.weights: set a model on the Hub, e.g. facebook/dinov2-small, or a folder with one")
    place = expanded(name)
    folder = place if is_folder(place) else hub_folder(name, ("*.json", "*.safetensors"), download=download)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"encoder.weights: '{name}' has no .safetensors weights: save_pretrained writes them")
    settings = [folder / file for file in (CONFIG, PROCESSOR) if (folder / file).is_file()]
    recipe = {"preprocessing": _preprocessing(folder).facts, "config": read_settings(folder / CONFIG)}
    return Source((*weights, *settings), recipe, len(weights))


def load_huggingface(built: Built, source: Source) -> None:
    """Put the weights of a folder into a model, as transformers does: it knows older names of them.

    Raises:
        UserError: some are missing.
    """
    built.network.load_state_dict(HiddenStates(read_model(source.files[0].parent)).state_dict())


def read_model(folder: Path) -> Any:
    """Return the model of a folder with its weights, as transformers reads it; no code in it is run.

    Raises:
        UserError: it cannot be read, or weights are missing.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, told = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # of whatever kind: it may be any folder
        raise UserError(f"encoder.weights: {folder} cannot be read: {first_line(error)}") from error
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
    missing = sorted(key for key in told["missing_keys"] if not key.startswith("pooler."))  # which nobody asks
    if missing:
        raise UserError(f"encoder.weights: {folder} lacks '{missing[0]}' and {len(missing) - 1} more")
    return model


@ENCODERS.enter(
    "huggingface",
    "a vision model from transformers (ViT, DINOv2, CLIP, ConvNeXt, ...), from the Hub or a folder",
    options=HuggingFaceOptions,
    find=find_huggingface,
    load=load_huggingface,
    packages=("transformers",),
)
def build_huggingface(options: HuggingFaceOptions, recipe: Recipe) -> Built:
    """Build a model of transformers.

    Raises:
        UserError: the library is not installed, or knows no such model.
    """
    return Built(HiddenStates(model_of(recipe["config"])))


def model_of(settings: dict[str, Any]) -> Any:
    """Return a model with the settings of its `config.json`, weights random.

    Raises:
        UserError: the library is not installed, or knows no such model.
    """
    try:
        from transformers import CONFIG_MAPPING, AutoModel
    except ImportError as error:
        raise needed("transformers", "transformers", error) from error
    kind = settings.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"encoder.weights: transformers has no model type '{kind}'")
    return AutoModel.from_config(CONFIG_MAPPING[kind].from_dict(dict(settings)))


def _preprocessing(folder: Path) -> Preprocessing:
    """Return what the settings beside the weights say of images."""
    if not (folder / PROCESSOR).is_file():
        raise UserError(
            f"encoder.weights: {folder} has no {PROCESSOR}, which defines the preprocessing: the model's image "
            "processor also writes it with save_pretrained"
        )
    facts = read_settings(folder / PROCESSOR)
    whole = _side(facts.get("size")) if facts.get("do_resize", True) else None
    size = _side(facts.get("crop_size")) if facts.get("do_center_crop", False) else whole
    mean, std = (tuple(facts.get(f"image_{name}") or ()) for name in ("mean", "std"))
    if not facts.get("do_normalize", True):
        mean, std = (), ()
    how = RESAMPLING.get(facts.get("resample", 2), "bilinear")
    return Preprocessing(size, mean, std, how, 1.0 if size is None or whole is None else min(1.0, size / whole))


def _side(size: Any) -> int | None:
    """Return the side of an image that settings ask for: a number, a height, or the shorter one."""
    found = size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
    return found if isinstance(found, int) else None


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a JSON file.

    Raises:
        UserError: it cannot be read, or holds none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"encoder.weights: {path} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise UserError(f"encoder.weights: {path} is not a model configuration")
    return found
