"""A configuration from its YAML file: preset below, overrides above, validated. Unknown keys fail with the nearest valid one.

Imports neither torch nor ray, so that ``--help`` and wrong configurations are answered at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ka2l_ray.config import RunConfig
from ka2l_ray.errors import UserError

S = TypeVar("S", bound=BaseModel)


def preset_names() -> list[str]:
    return sorted(
        p.name.removesuffix(".yaml") for p in (resources.files("ka2l_ray") / "presets").iterdir() if p.name.endswith(".yaml")
    )


def load_preset(name: str) -> dict[str, Any]:
    """A preset's keys, on those of the preset that it builds on, if any."""
    if name not in preset_names():
        raise UserError(f"no preset '{name}'{_nearest(name, preset_names())}; there are: {', '.join(preset_names())}")
    text = (resources.files("ka2l_ray") / "presets" / f"{name}.yaml").read_text()
    document: dict[str, Any] = yaml.safe_load(text)
    below = document.pop("preset", None)
    return document if below is None else _merge(load_preset(below), document)


class _EachKeyOnce(yaml.SafeLoader):
    """A key that stands twice is refused: YAML's own loader takes the last and drops the rest unsaid."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"'{key_node.value}' stands twice; give each key once", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def load_config(path: str | Path | None, overrides: list[str] | None = None, values: dict[str, Any] | None = None) -> RunConfig:
    """The validated configuration: preset, then file, then ``values`` by dotted key, then ``KEY=VALUE`` overrides.

    Raises:
        UserError: no such file, not YAML, an unknown key, or a value out of range; one line each.
    """
    document: dict[str, Any] = {}
    where = "configuration"
    if path is not None:
        where = f"{path} and -o" if overrides else str(path)
        document = _read_yaml(Path(path))
    for key, value in (values or {}).items():
        _put(document, key, value, key)
    for override in overrides or []:
        _apply(document, override)
    preset = document.pop("preset", None)
    if preset is not None:
        document = _merge(load_preset(str(preset)), document)
    return validate(document, where)


def validate(document: dict[str, Any], where: str = "configuration") -> RunConfig:
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error, valid_keys())}") from None


def validate_section(section: type[S], values: Mapping[str, Any], where: str) -> S:
    """A section of the configuration from values given in Python.

    Raises:
        UserError: no mapping, an unknown key, or a value out of range; one line.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: a mapping of keys is wanted, this is {values!r:.60}")
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error, valid_keys(section))}") from None


def dump(config: RunConfig) -> str:
    """The resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def valid_keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Every dotted key."""
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += valid_keys(kind, f"{prefix}{name}.")
    return keys


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: {'a directory' if path.is_dir() else 'no such file'}; give a YAML configuration")
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        if isinstance(error, yaml.constructor.ConstructorError):
            raise UserError(f"{place}: {error.problem}") from None
        raise UserError(f"{place}: not YAML ({getattr(error, 'problem', 'cannot be read')})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); give a YAML configuration") from None
    if document is None:
        raise UserError(f"{path}: the file is empty; give a YAML configuration")
    if not isinstance(document, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys, this is a {type(document).__name__}")
    return document


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"-o {override}: an override is KEY=VALUE, such as probe.epochs=5")
    key = key.strip()
    try:
        parsed = yaml.load(value, _EachKeyOnce)
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"-o {override}: {error.problem}") from None
    except yaml.YAMLError:
        raise UserError(f"-o {override}: the value is not YAML") from None
    if not value.strip() and _is_text(key):
        parsed = ""
    _put(document, key, parsed, f"-o {override}")


def _is_text(key: str, section: type[BaseModel] = RunConfig) -> bool:
    """Whether the value of ``key`` is a text that cannot be left out: nothing given is then the empty text."""
    first, _, rest = key.partition(".")
    field = section.model_fields.get(first)
    kind = field.annotation if field is not None else None
    if rest:
        return isinstance(kind, type) and issubclass(kind, BaseModel) and _is_text(rest, kind)
    return kind is str


def _put(document: dict[str, Any], key: str, value: Any, shown: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise UserError(f"{shown}: '{section}' is a value, not a section")
    document[last] = value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        inner = merged.get(name)
        merged[name] = _merge(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return merged


def _explain(error: ValidationError, valid: list[str]) -> str:
    """The faults of one validation, in one line."""
    faults = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"] if part != "")
        if fault["type"] == "extra_forbidden":
            faults.append(f"unknown key '{key}'{_nearest(key, valid)}")
        elif fault["type"] == "missing":
            faults.append(f"'{key}' is missing")
        else:
            given = "" if isinstance(fault["input"], dict) else f" (given: {fault['input']!r})"
            faults.append(f"{key or 'configuration'}: {fault['msg'].removeprefix('Value error, ')}{given}")
    return "; ".join(faults)


def _nearest(name: str, valid: list[str]) -> str:
    """`` (nearest: 'x')``, by the whole dotted name or by its last part."""
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if not near:
        last = {key.rsplit(".", 1)[-1]: key for key in valid}
        near = [last[hit] for hit in difflib.get_close_matches(name.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.6)]
    return f" (nearest: '{near[0]}')" if near else ""
