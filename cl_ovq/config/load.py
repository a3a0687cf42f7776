"""From a YAML file and `key=value` overrides to a checked configuration."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_ovq.addresses import redact
from cl_ovq.config.check import check_keys, check_values, field_of
from cl_ovq.config.files import first_line, is_file, read_mapping, shipped_folders
from cl_ovq.config.schema import ExperimentConfig, StreamConfig
from cl_ovq.errors import UserError, nearest, unknown
from streams import STREAMS

INDIFFERENT = ("tracking.", "checkpoint.", "output_dir", "threads", "device", "seeds")  # prefixes, see `decisive`
EXPERIMENTS = "experiments"
# Folders in it of files that are no experiments, but grids of them, and numbers that an experiment is to show.
STUDIES, PUBLISHED = "studies", "published"

SECTIONS: dict[str, Any] = {
    field.name: field.default_factory
    for field in dataclasses.fields(ExperimentConfig)
    if dataclasses.is_dataclass(field.default_factory)
}
SCALARS = tuple(
    field for field in dataclasses.fields(ExperimentConfig) if field.name not in SECTIONS and field.name != "stream"
)


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


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read an experiment, apply overrides, and check every key, type, name and range that can be checked from it alone.

    Args:
        name: path of a YAML file, or the name of one under `experiments/`.
        overrides: `key=value` with dotted keys and YAML values, e.g. `model.mixer=softmax`.

    Raises:
        UserError: a file, key or value is wrong; one line says which, and what would be right.
    """
    return _configure(_read_tree(find_experiment(str(name))), _parse_overrides(overrides))


def read_experiment(name: str | Path) -> dict[str, Any]:
    """Return what an experiment's file says, as plain data, without checking it; `from_dict` makes a configuration.

    Raises:
        UserError: there is no such file, or it is no YAML mapping.
    """
    return _read_tree(find_experiment(str(name)))


def from_dict(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Return the configuration that plain data in the shape of the YAML files describes, checked like any other.

    Args:
        tree: as `to_dict` or `read_experiment` return it.
        overrides: `key=value`, as on the command line.

    Raises:
        UserError: a key or value is wrong.
    """
    return _configure(dict(tree), _parse_overrides(overrides))


def load_stream_config(name: str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Return the configuration of a stream alone, with everything else at its default.

    Args:
        name: of the stream.
        overrides: `key=value` of the stream's options, e.g. `experiences=2`, and `seed=N`.

    Raises:
        UserError: see `load_config`.
    """
    named = [text if text.startswith(("seed=", "stream.")) else f"stream.{text}" for text in overrides]
    return _configure({"stream": {"name": name}}, _parse_overrides(named))


def _configure(tree: dict[str, Any], changes: dict[str, Any]) -> ExperimentConfig:
    """Lay changes over a file's tree, check everything, and build the configuration."""
    options = _stream_schema(tree, changes)
    schema: dict[str, Any] = {"stream": options, **SECTIONS}
    for source in (tree, changes):
        check_keys(source, schema, SCALARS)
        for key, value in flatten(source).items():
            if value == "???":  # OmegaConf would pass over it
                raise UserError(f"{key}: '???' stands for a missing value: give one, or leave the key out")
    scalars = dataclasses.make_dataclass("scalars", [(f.name, f.type, field_of(f)) for f in SCALARS])
    values = _resolve({"": scalars, **schema}, tree, changes)
    top = _build("", scalars, {f.name: values[f.name] for f in SCALARS})
    built = {section: _build(section, cls, values[section]) for section, cls in schema.items()}
    return ExperimentConfig(
        stream=StreamConfig(_stream_name(tree, changes), built.pop("stream")),
        **built,
        **{f.name: getattr(top, f.name) for f in SCALARS},
    )


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Return the resolved configuration as plain data, in the shape of the YAML files; without a store's password."""
    tree = dataclasses.asdict(config)
    if config.tracking.uri is not None:
        tree["tracking"]["uri"] = redact(config.tracking.uri)
    tree["stream"] = {"name": config.stream.name, **dataclasses.asdict(config.stream.options)}
    return tree


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a configuration by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def decisive(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the result of a run, by dotted key: all but where it is kept and on what it is computed."""
    return {key: value for key, value in flatten(tree).items() if not key.startswith(INDIFFERENT)}


def _read_tree(path: Path, *, included: bool = False) -> dict[str, Any]:
    """Read a YAML file and lay it over the one that it includes (one level)."""
    tree = read_mapping(path)
    base = tree.pop("include", None)
    if base is None:
        return tree
    if included:
        raise UserError(f"{path} is included by another file, so it cannot include '{base}': one level is allowed")
    base_path = path.parent / str(base)
    if not is_file(base_path):
        raise UserError(f"{path} includes '{base}', but there is no file {base_path}")
    below = OmegaConf.create(_read_tree(base_path, included=True))
    try:
        return _plain(OmegaConf.merge(below, OmegaConf.create(tree)))
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError(f"{path} does not fit over '{base}', which it includes: {first_line(error)}") from error


def _parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    merged = OmegaConf.create()
    for override in overrides:
        key, separator, _ = override.partition("=")
        # Dots and words only: OmegaConf has further ways to write a path, which no key here needs.
        if not separator or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            raise UserError(f"override '{override}' is not of the form key=value, e.g. model.mixer=softmax")
        try:
            merged.merge_with_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"cannot read the override '{override}': {first_line(error)}") from error
    return _plain(merged)


def _stream_name(*trees: Mapping[str, Any]) -> str:
    sections = [tree.get("stream") for tree in trees]
    for section in sections:
        if section is not None and not isinstance(section, Mapping):
            raise UserError(f"stream: '{section}' is not a section: write stream.name={section}")
    for section in reversed(sections):
        if section and section.get("name") is not None:
            return str(section["name"])
    raise UserError(f"stream.name is missing: known: {', '.join(sorted(STREAMS))}")


def _stream_schema(tree: dict[str, Any], changes: Mapping[str, Any]) -> type:
    """Return the options of the named stream, and drop what an overridden name leaves without meaning.

    An override of `stream.name` keeps those options of the file that the other stream has too.
    """
    name = _stream_name(tree, changes)
    if name not in STREAMS:
        raise UserError(f"stream.name: {unknown('stream', name, STREAMS)}")
    options = STREAMS[name].Options
    if tree.get("stream") and name != tree["stream"].get("name"):
        known = {field.name for field in dataclasses.fields(options)}
        tree["stream"] = {key: value for key, value in tree["stream"].items() if key in known}
    return options


def _resolve(schema: Mapping[str, Any], *trees: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the trees over the defaults, the later over the earlier, and put in what interpolations refer to.

    Everything is one tree here, so that a value may refer to any other: `${model.width}`, also to one not given.
    """
    defaults: dict[str, Any] = {section: dataclasses.asdict(cls()) for section, cls in schema.items()}
    defaults |= defaults.pop("")
    defaults["stream"]["name"] = _stream_name(*trees)
    given = ({key: value for key, value in tree.items() if key not in schema or value is not None} for tree in trees)
    try:
        merged = OmegaConf.merge(OmegaConf.create(defaults), *map(OmegaConf.create, given))
        resolved: dict[str, Any] = OmegaConf.to_container(merged, resolve=True)  # type: ignore[assignment]
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{key}: {first_line(error)}" if key else first_line(error)) from error
    del resolved["stream"]["name"]
    return resolved


def _build(section: str, cls: Any, values: Mapping[str, Any]) -> Any:
    """Return the dataclass of a section with its values, after checking their types and ranges."""
    check_values(section, cls, values)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), OmegaConf.create(dict(values))))
    except (OmegaConfBaseException, ValueError, OverflowError) as error:
        key = ".".join(filter(None, (section, str(getattr(error, "full_key", None) or ""))))
        raise UserError(f"{key}: {first_line(error)}" if key else first_line(error)) from error


def _plain(tree: Any) -> dict[str, Any]:
    return {str(key): value for key, value in OmegaConf.to_container(tree).items()}  # type: ignore[union-attr]
