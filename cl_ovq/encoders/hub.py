"""Files of the Hugging Face hub: those that are on this machine, and those that have to be fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cl_ovq.encoders.base import needed
from cl_ovq.errors import UserError, first_line


def hub_folder(name: str, patterns: Sequence[str], *, download: bool, offline: str = "efficientnet_lite0") -> Path:
    """Return the folder of a repository's files on this machine.

    Args:
        name: `owner/name`.
        patterns: of the files that are wanted.
        download: whether they may be fetched.
        offline: an encoder that needs no such files, for the message.

    Raises:
        UserError: the library is not there, or the files are not and cannot be fetched.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise needed("huggingface_hub", "transformers", error) from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=True))
    except Exception as error:  # of whatever kind: none of them says that there is something wrong with what is there
        if not download:
            raise UserError(f"encoder.weights: '{name}' is not on this machine") from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:  # of whatever kind: the network's, the hub's, the disk's
        raise UserError(
            f"encoder.weights: '{name}' is not on this machine and cannot be downloaded: {first_line(error)}: download "
            f"it elsewhere (hf download {name} --local-dir FOLDER) and set encoder.weights to the folder or file; "
            f"or use encoder.name={offline}, which works offline"
        ) from error
