"""From a YAML file and `key=value` overrides to a checked configuration."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_ovq.config.check import checked_values, holds_text
from cl_ovq.config.custom import check_custom
from cl_ovq.config.environment import check_environment, check_references
from cl_ovq.config.files import read_mapping, shipped_folders
from cl_ovq.config.identity import INDIFFERENT
from cl_ovq.config.keys import check_keys, flatten, sections, settle
from cl_ovq.config.parts import current, default_of, owners, schema_of
from cl_ovq.config.presets import without_presets
from cl_ovq.config.reading import Step, read_override, yaml_line
from cl_ovq.config.schema import SCALARS, SECTIONS, ExperimentConfig, Scalars, StreamConfig
from cl_ovq.config.weights import with_checksum, without_checksum
from cl_ovq.errors import UserError, first_line, nearest
from cl_ovq.imports import check_imported, import_parts, stored_hint
from cl_ovq.paths import is_file
from cl_ovq.uris import redact, redact_tree, remember
from streams import STREAMS

EXPERIMENTS = "experiments"
SUFFIXES = (".yaml", ".yml")
EXAMPLE = "model.mixer=softmax"
# Folders in it of files that are no experiments, but grids of them, and numbers that an experiment is to show.
STUDIES, PUBLISHED = "studies", "published"


def is_text(path: Sequence[Step]) -> bool:
    """Return whether the schema has text at a place of an experiment."""
    section, *steps = path or ("",)
    # Whatever the parts: options of one name are text in all of them, or lists of texts in some.
    if section in sections():
        return any(holds_text(owner.options, steps) for owner in owners() if owner.section == section)
    return holds_text(Scalars, path)


def is_text_below(dotted: Sequence[Step]) -> bool:
    """Return whether the schema has text at a place whose first step is a dotted key, as in `set` of a sweep."""
    key, *steps = dotted or ("",)
    return is_text((*str(key).split("."), *steps))


def list_experiments() -> dict[str, Path]:
    """Return the experiments that can be named without a path, by name."""
    found: dict[str, Path] = {}
    for folder in shipped_folders(EXPERIMENTS):
        for path in sorted(folder.rglob("*.yaml")):
            if path.relative_to(folder).parts[0] in (STUDIES, PUBLISHED):
                continue
            found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
    return found


def find_experiment(name: str) -> Path:
    """Return the file of an experiment given as a path, or by its name under `experiments/`.

    Raises:
        UserError: there is no such file.
    """
    path = Path(name)
    if is_file(path):
        return path
    known = list_experiments()
    short = path.as_posix().removeprefix("experiments/").removesuffix(path.suffix)
    if short in known:
        return known[short]
    raise UserError(
        f"no experiment '{name}'{nearest(short, known) or ':'} known: {', '.join(known) or 'none'} "
        "(or give the path of a YAML file)"
    )


def load_config(
    name: str | Path, overrides: Sequence[str] = (), *, allow_env: bool = False, given: bool = True
) -> ExperimentConfig:
    """Read an experiment, apply overrides, and check every key, type, name and range that can be checked from it alone.

    Args:
        name: path of a YAML file, or the name of one under `experiments/`.
        overrides: `key=value` with dotted keys and YAML values, e.g. `model.mixer=softmax`.
        allow_env: whether what decides no result may be read from the environment, as `${oc.env:NAME}`.
        given: whether the person named the file; if another file did, nothing of its content is shown unless it is a
            configuration.

    Raises:
        UserError: a file, key or value is wrong; one line says which, and what would be right.
    """
    layers = _read_layers(find_experiment(str(name)), given=given)
    return _configure([*layers, _parse_overrides(overrides)], allow_env=allow_env)


def read_experiment(name: str | Path, *, given: bool = False) -> dict[str, Any]:
    """Return what an experiment's file says as plain data; `from_dict` checks it.

    Args:
        name: see `load_config`.
        given: whether the person named the file, and no other file did.

    Raises:
        UserError: there is no such file, or it is no configuration.
    """
    return settle(_read_layers(find_experiment(str(name)), given=given))[0]


def from_dict(tree: Mapping[str, Any], overrides: Sequence[str] = (), *, allow_env: bool = False) -> ExperimentConfig:
    """Return the configuration that plain data in the shape of the YAML files describes, checked like any other.

    Args:
        tree: as `to_dict` or `read_experiment` return it.
        overrides: `key=value`, as on the command line.
        allow_env: see `load_config`.

    Raises:
        UserError: a key or value is wrong.
    """
    return _configure([tree, _parse_overrides(overrides)], allow_env=allow_env)


def from_stored(
    tree: Mapping[str, Any], overrides: Sequence[str] = (), imports: Iterable[str] = ()
) -> ExperimentConfig:
    """Return the configuration that a finished run has stored; what it had from the environment is at its default.

    Keys that were stored without being used are passed over.

    Args:
        tree: as `to_dict` returned it.
        overrides: `key=value`, as on the command line.
        imports: files and modules of the user's own that it was made with beside those that it names, for messages.

    Raises:
        UserError: a key or value is wrong.
    """
    kept = copy.deepcopy(current(tree))
    for key, value in flatten(kept).items():
        if key.startswith(INDIFFERENT) and "${" in str(value):
            holder, last = _holder(kept, key)
            del holder[last]
    try:
        return from_dict(kept, overrides)
    except UserError as error:
        raise UserError(f"{error}{stored_hint([*dict.fromkeys([*(kept.get('imports') or []), *imports])])}") from error


def load_stream_config(name: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Return the configuration of a stream alone, with everything else at its default.

    Args:
        name: of the stream.
        overrides: `key=value` of the stream's options, e.g. `experiences=2`, and `seed=N`.

    Raises:
        UserError: see `load_config`.
    """
    named = [text if text.startswith(("seed=", "stream.")) else f"stream.{text}" for text in overrides]
    return _configure([{"stream": {"name": name}}, _parse_overrides(named)])


def _configure(layers: Sequence[Mapping[str, Any]], *, allow_env: bool = False) -> ExperimentConfig:
    """Lay the layers of a configuration over each other, check everything, and build it."""
    for section in ("model", "stream"):
        parts = [part for layer in layers if isinstance(part := layer.get(section), Mapping)]
        check_custom(section, {key: value for part in parts for key, value in part.items()})
    layers = without_presets(layers)
    leaves: dict[str, Any] = {}
    for layer in layers:
        leaves |= flatten(layer)
    layers = without_checksum(layers)
    written = check_environment(leaves, INDIFFERENT, allowed=allow_env)
    tree, schema = settle(layers)
    for key, value in flatten(tree).items():
        if value == "???":  # OmegaConf would pass over it
            raise UserError(f"{key}: '???' means a missing value: set one, or remove the key")
    values = _resolve(schema, tree)
    unresolved = _unresolved(values, written)
    built = {section: _build(section, cls, values[section]) for section, cls in schema.items()}
    top = _build("", Scalars, {f.name: values[f.name] for f in SCALARS})
    return with_checksum(ExperimentConfig(**built, **vars(top), unresolved=unresolved))


def _unresolved(values: dict[str, Any], written: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what was written in the place of values that came from the environment, with these values."""
    found = {}
    for key, text in written.items():
        holder, last = _holder(values, key)
        remember(holder[last])
        found[key] = (text, holder[last])
    return found


def _holder(tree: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """Return the mapping that holds the value of a dotted key, and the key in it; that of a tag may have dots, too."""
    *sections, last = key.split(".", 2)
    for section in sections:
        tree = tree[section]
    return tree, last


def check_schema(config: ExperimentConfig) -> None:
    """Check keys, types and ranges of a configuration that may have been changed in Python, as if it had been read.

    Raises:
        UserError: in the line that the same mistake in a file gives.
    """
    check_custom("model", vars(config.model))
    check_custom("stream", {"name": config.stream.name, **vars(config.stream.options)})
    for key in vars(config.stream).keys() - {"name", "options"}:
        raise UserError(f"stream.{key}: options of a stream are attributes of stream.options")
    tree = {name: vars(value) if dataclasses.is_dataclass(value) else value for name, value in vars(config).items()}
    tree["stream"] = {"name": config.stream.name} | vars(config.stream.options)
    del tree["unresolved"]
    for section, cls in SECTIONS.items():
        if section != "stream" and not isinstance(getattr(config, section), cls):
            raise UserError(f"{section}: '{tree[section]}' is not a {cls.__name__}")
    schema = schema_of(tree)
    for section in sections():
        wanted = schema.get(section, type(None))
        if section != "stream" and type(getattr(config, section)) is not wanted:
            raise UserError(
                f"{section}: it lacks the options of the configured parts: choose parts with overrides when loading it"
            )
    check_keys(tree, tree)
    for section, cls in schema.items():
        known = {field.name for field in dataclasses.fields(cls)}
        checked_values(section, cls, {key: value for key, value in tree[section].items() if key in known})
    checked_values("", Scalars, {field.name: tree[field.name] for field in SCALARS})


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Return the configuration as plain data, in the shape of the YAML files, as it may be stored and shown.

    It is resolved, but for what came from the environment, and without the secrets of any address.
    """
    tree = dataclasses.asdict(config)
    tree = {key: value for key, value in tree.items() if key not in sections() or value is not None}
    tree["stream"] = {"name": config.stream.name, **dataclasses.asdict(config.stream.options)}
    for key, (text, value) in tree.pop("unresolved").items():
        holder, last = _holder(tree, key)
        if holder.get(last) == value:  # it was not changed since
            holder[last] = text
    if tree["tracking"]["uri"] is not None:
        tree["tracking"]["uri"] = redact(tree["tracking"]["uri"])
    stored: dict[str, Any] = redact_tree(tree)
    return stored


def _read_layers(path: Path, *, given: bool = True, included: bool = False) -> list[dict[str, Any]]:
    """Read a YAML file and the one that it includes (one level); return both, the included one first.

    Args:
        path: of the file.
        given: whether the person gave it. One that another file names may be anything of this machine: nothing of its
            content is shown, unless it is a configuration.
        included: whether another file includes it.

    Raises:
        UserError: it is none.
    """
    if not given and path.resolve().suffix not in SUFFIXES:
        raise UserError(
            f"{path} is named as an experiment by another file, but is not a YAML file ({', '.join(SUFFIXES)})"
        )
    tree = read_mapping(path, lambda place: place == ("include",) or is_text(place), shown=given)
    if not given and tree.keys() - {"include", *sections(), *(field.name for field in SCALARS)}:
        raise UserError(f"{path} is not an experiment configuration (for the reason, run cl-ovq show {path})")
    if "imports" in tree:
        names = checked_values("", Scalars, {"imports": tree["imports"]})["imports"]
        tree["imports"] = import_parts(names, path.parent) if given else check_imported(names, path.parent, path)
    base = tree.pop("include", None)
    if base is None:
        return [tree]
    if included:
        raise UserError(
            f"{path} is included by another file, so it cannot include '{base}': only one level of includes is allowed"
        )
    base_path = path.parent / str(base)
    if not is_file(base_path):
        raise UserError(f"{path} includes '{base}', but there is no file {base_path}")
    return [*_read_layers(base_path, given=False, included=True), tree]


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    merged = OmegaConf.create()
    for override in overrides:
        key, value = read_override(override, EXAMPLE, is_text_below)
        # Dots and words only: OmegaConf has further ways to write a path, which no key here needs.
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            raise UserError(f"override '{override}' is not of the form key=value, e.g. {EXAMPLE}")
        if key == "imports":
            raise UserError("imports: overrides are applied too late for imports: use --import")
        try:
            OmegaConf.update(merged, key, value)
        except (OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"cannot read the override '{override}': {yaml_line(error)}") from error
    return _plain(merged)


def _resolve(schema: Mapping[str, type], tree: Mapping[str, Any]) -> dict[str, Any]:
    """Lay what is given over the defaults, and put in what interpolations refer to.

    Everything is one tree here, so that a value may refer to any other: `${model.width}`, also to one not given.
    """
    defaults: dict[str, Any] = {field.name: default_of(field) for field in SCALARS}
    for section, cls in schema.items():
        values = {field.name: default_of(field) for field in dataclasses.fields(cls)}
        defaults[section] = {key: value for key, value in values.items() if value is not dataclasses.MISSING}
    given = {key: value for key, value in tree.items() if key not in schema or value is not None}
    try:
        check_references(tree)
        merged = OmegaConf.merge(OmegaConf.create(defaults), OmegaConf.create(given))
        resolved: dict[str, Any] = OmegaConf.to_container(merged, resolve=True)  # type: ignore[assignment]
    except RecursionError as error:
        raise UserError("references between keys are nested too deeply") from error
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{key}: {first_line(error)}" if key else first_line(error)) from error
    return resolved


def _build(section: str, cls: Any, values: Mapping[str, Any]) -> Any:
    """Return the dataclass of a section with its values, after checking their types and ranges."""
    checked = checked_values(section, cls, values)
    if section == "stream":
        name = checked.pop("name")
        return StreamConfig(name, STREAMS[name].Options(**checked))
    return cls(**checked)


def _plain(tree: Any) -> dict[str, Any]:
    return {str(key): value for key, value in OmegaConf.to_container(tree).items()}  # type: ignore[union-attr]
