"""Every key that a sweep may set: a page of them, one explained, and the schemas that editors check files by.

    python -m lmim.plan.keys        # writes ablations/KEYS.md and the two schemas again

All of it is read from the fields of the config and of the sweep file, and from the variants' own source.
"""

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from lmim import config, variants
from lmim.config import ALWAYS, KINDS, Config
from lmim.errors import UserError, nearest, word
from lmim.files import write_atomic
from lmim.metrics import known
from lmim.plan import designs
from lmim.plan.located_yaml import read_yaml
from lmim.plan.search import Tune
from lmim.plan.settings import BASE, Schema
from lmim.plan.sweep_file import BASELINES, PROJECT_ABLATIONS, SweepFile
from lmim.trial import figure
from lmim.trial.ending import Collapse
from lmim.trial.evaluation import EVERY, read_evaluations

Json = dict[str, Any]
OWN = {"type": "string", "pattern": ":", "description": "your own: `file.py:name` or `package.module:name`"}
"""The name of a variant of the user's."""


@dataclass
class Key:
    """A key: what it means, what it may be, and what it is where nobody sets it."""

    name: str
    meaning: str
    schema: Json
    default: Any
    read_by: list[str] = field(default_factory=list)
    """The variants or designs that it is for; none for one that every trial, or every sweep, has."""
    choices: Mapping[str, str] = field(default_factory=dict)
    """Of a variant's name: each, and what it is."""

    @property
    def values(self) -> str:
        """What it may be, in words."""
        return ", ".join(self.choices) + ", or your own" if self.choices else said(self.schema)


def said(schema: Json) -> str:
    """A JSON schema of one value, in words.

    >>> said({"type": "integer", "exclusiveMinimum": 0}), said({"enum": ["cpu", "cuda"]})
    ('integer > 0', 'cpu, cuda')
    >>> said({"anyOf": [{"type": "string"}, {"type": "null"}]})
    'text or nothing'
    """
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(said(one) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(map(word, schema.get("enum", [schema.get("const")])))
    names = {
        "null": "nothing",
        "string": "text",
        "boolean": "true, false",
        "object": "a mapping",
        "array": "a list",
    }
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    found = [f"{sign} {word(schema[bound])}" for bound, sign in bounds.items() if bound in schema]
    kind = str(schema.get("type", "anything"))
    name = names.get(kind, kind)
    return " ".join([name, " and ".join(found)]).strip()


def config_keys() -> list[Key]:
    """The keys of the config, with those of each variant after their section's."""
    found: dict[str, Key] = {}
    for name in ("objective", "seed"):
        about = Config.model_fields[name]
        found[name] = Key(name, about.description or "", _schema(about), about.default)
    for section, kind in config.SECTIONS.items():
        read = {ref: _variant("objective", ref) for ref in variants.choices("objective")}
        parts = {ref: config.part_of(section, one) for ref, one in read.items() if section in one.reads}
        for leaf, about in kind.model_fields.items():
            name = section if leaf == "kind" else f"{section}.{leaf}"
            takers = [ref for ref, part in parts.items() if leaf in part.model_fields]
            readers = [] if section in ALWAYS else takers
            found[name] = Key(name, about.description or "", _schema(about), about.default, readers)
        if section in KINDS or section == "data":
            _settings(section, section, found)
    del found["data.version"], found["collapse.version"]
    _settings("objective", "", found)
    for section in ("objective", "data.name", *KINDS):
        place = section.partition(".")[0]
        found[section].choices = {ref: _variant(place, ref).meaning for ref in variants.choices(place)}
    return list(found.values())


def _settings(section: str, prefix: str, found: dict[str, Key]) -> None:
    """Add the settings of a section's variants; one that several share is one key."""
    for ref in variants.choices(section):
        for leaf, one in _variant(section, ref).settings.items():
            name = f"{prefix or ref}.{leaf}"
            new = Key(name, one.meaning, TypeAdapter(one.type).json_schema(), one.neutral)
            found.setdefault(name, new).read_by.append(ref)


def protocol_keys() -> list[Key]:
    """The settings of the protocols, as `evaluate: [{knn: {k: 5}}]` takes them."""
    found: dict[str, Key] = {}
    _settings("evaluate", "", found)
    for name, one in EVERY.items():
        schema = TypeAdapter(one.type).json_schema()
        found[name] = Key(name, one.meaning, schema, one.neutral, read_by=[*variants.choices("evaluate")])
    return list(found.values())


def figure_keys() -> list[Key]:
    """The settings of the figures, as `figures: [{attention: {images: 4}}]` takes them."""
    return [
        Key(f"figures.{name}.{leaf}", one.meaning, TypeAdapter(one.type).json_schema(), one.neutral)
        for name in figure.names()
        for leaf, one in figure.settings_of(name).items()
    ]


def sweep_keys() -> list[Key]:
    """The keys of a sweep file, those of single designs last."""
    found: dict[str, Key] = {}
    for design in designs.names():
        for name, about in designs.find(design).Keys.model_fields.items():
            key = found.setdefault(name, _key(name, about))
            if name not in SweepFile.model_fields:
                key.read_by.append(design)
    found["tune"].schema = {"type": "object"}
    found |= {f"tune.{name}": _key(f"tune.{name}", about) for name, about in Tune.model_fields.items()}
    found["design"].schema = {"enum": designs.names()}
    found["end_collapsed"].schema = {"anyOf": [Collapse.model_json_schema(), {"type": "boolean"}]}
    found["baselines"].schema["items"] = {"enum": [*BASELINES]}
    found["name"].schema["pattern"] = found["name"].schema["pattern"].replace(r"\z", "$")
    return list(found.values())


def _key(name: str, about: FieldInfo) -> Key:
    """A key of a sweep file, as its field says."""
    default = None if about.is_required() else about.get_default(call_default_factory=True)
    return Key(name, about.description or "", _schema(about), default)


def _variant(section: str, ref: str) -> variants.Variant:
    return variants.describe(section, ref, {})


def _schema(about: Any) -> Json:
    return TypeAdapter(Annotated[about.annotation, about]).json_schema()


# ------------------------------------------------------------------------------------------ for people


def explain(name: str) -> str:
    """What there is to know of one key, or of a variant by its name; `all` for every key.

    Raises:
        UserError: there is none of that name; says the nearest.
    """
    keys = [*sweep_keys(), *config_keys(), *protocol_keys(), *figure_keys()]
    if name == "all":
        return "\n\n".join(_paragraph(key) for key in keys)
    name = name.removesuffix(".kind")
    exact = [key for key in keys if key.name == name or name in key.choices]
    if chosen := exact or [
        key for key in keys if name in (key.name.rpartition(".")[2], key.name.partition(".")[0])
    ]:
        return "\n\n".join(_paragraph(key) for key in chosen)
    names = [key.name for key in keys] + [choice for key in keys for choice in key.choices]
    raise UserError(
        f"--explain {name}: expected a key, or all, found none of that name{nearest(name, names)}"
    )


def _paragraph(key: Key) -> str:
    lines = [f"{key.name}: {key.meaning}", f"  values: {key.values}"]
    lines += [f"    {choice}: {meaning}" for choice, meaning in key.choices.items()]
    lines += [f"  default: {_default(key)}"] if key.default is not None else []
    lines += [f"  read by: {', '.join(key.read_by)}"] if key.read_by else []
    recipe = _recipe()
    return "\n".join(lines + ([f"  in base.yaml: {recipe[key.name]}"] if key.name in recipe else []))


def _default(key: Key) -> str:
    return ", ".join(map(word, key.default)) if isinstance(key.default, list) else word(key.default)


def _recipe() -> dict[str, str]:
    """What the method's recipe sets."""
    file = PROJECT_ABLATIONS / "base.yaml"
    settings = Schema.of([(read_yaml(file), file.parent, "base.yaml")]).settings_of(read_yaml(file), "", BASE)
    return {key: word(setting.value) for key, setting in settings.items()}


HEAD = """\
# Keys

Written by `python -m lmim.plan.keys`; do not edit. `python -m lmim.sweep --explain KEY` says the same of one.

## Of a sweep file
"""
MIDDLE = """
## Of the config

Any of them can stand in a base or a scale or be given by `--set`; all but `seed` and `run` can be an axis.
The default is the neutral value: a trial in which a key has it is the trial that never heard of the key.
`base.yaml` is the method's recipe, and a scale (`scales/`) is laid over it. Where it is said who reads a key,
it is in a trial only with one of these.
"""
LAST = """
## Of protocols

`evaluate: [nn, {knn: {k: 5}}, linear]`
"""
FIGURES = """
## Of figures

`figures: [segmentation, {attention: {images: 4}}]`
"""


def page() -> str:
    """All keys in Markdown."""
    recipe = _recipe()
    lines = [HEAD, "| key | meaning | values | default | design |", "|---|---|---|---|---|"]
    lines += [_row(key, ", ".join(key.read_by)) for key in sweep_keys()]
    lines += [
        MIDDLE,
        "| key | meaning | values | default | base.yaml | read by |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(key, recipe.get(key.name, ""), ", ".join(key.read_by)) for key in config_keys()]
    lines += [LAST, "| key | meaning | values | default | protocol |", "|---|---|---|---|---|"]
    lines += [_row(key, ", ".join(key.read_by)) for key in protocol_keys()]
    lines += [FIGURES, "| figure | what it shows |", "|---|---|"]
    lines += [f"| `{name}` | {figure.meaning(name)} |" for name in figure.names()]
    lines += ["", "| key | meaning | values | default |", "|---|---|---|---|"]
    lines += [_row(key) for key in figure_keys()]
    return "\n".join(lines) + "\n"


def _row(key: Key, *more: str) -> str:
    default = "" if key.default is None else _default(key)
    cells = [f"`{key.name}`", key.meaning, key.values, default, *more]
    return "| " + " | ".join(re.sub(r"[|<]", r"\\\g<0>", " ".join(cell.split())) for cell in cells) + " |"


# ------------------------------------------------------------------------------------------ for editors


DIALECT = {"$schema": "http://json-schema.org/draft-07/schema#"}


def config_schema() -> Json:
    """The JSON schema of a base or a scale: config keys, nested or dotted."""
    found = _definitions()
    return DIALECT | _mapping({name: _refer(name) for name in found}) | {"definitions": found}


def sweep_schema() -> Json:
    """The JSON schema of a sweep file, whatever its design."""
    found = _definitions()
    one = {name: _refer(name) for name in found}
    some = {name: {"anyOf": [{"type": "array", "items": value}, value]} for name, value in one.items()}
    found |= {"config": _mapping(one), "axes": _mapping(some)}
    keys = {key.name: _value(key) for key in sweep_keys()}
    tune = {name.partition(".")[2]: keys.pop(name) for name in [*keys] if name.startswith("tune.")}
    keys["tune"] |= {"properties": tune, "required": ["keys"], "additionalProperties": False}
    keys["axes"]["allOf"] = [_refer("axes")]
    keys["config"]["allOf"] = [_refer("config")]
    keys["exclude"]["items"] = _refer("axes")
    keys["arms"]["additionalProperties"] = _refer("config")
    stage = {"axes": _refer("axes"), "select": {"anyOf": [{"const": "best"}, _refer("axes")]}}
    keys["stages"]["items"] = {"type": "object", "properties": stage, "additionalProperties": False}
    keys["stages"].pop("$defs")
    metrics = [name.removeprefix("eval/") for name, one in known(read_evaluations()).items() if one.better]
    keys["metric"]["anyOf"] = [{"enum": metrics}, {"type": "string"}]
    keys["evaluate"]["items"] = {
        "anyOf": [{"enum": [*variants.choices("evaluate")]}, OWN, {"type": "object"}]
    }
    keys["figures"]["items"] = {"anyOf": [{"enum": [*figure.names()]}, *map(_settled, figure.names())]}
    whole = {"type": "object", "properties": keys, "required": ["name"], "additionalProperties": False}
    return DIALECT | whole | {"definitions": found}


def _settled(name: str) -> Json:
    """A figure with its settings."""
    prefix = f"figures.{name}."
    leaves = {k.name.removeprefix(prefix): _value(k) for k in figure_keys() if k.name.startswith(prefix)}
    settings = {"type": "object", "properties": leaves, "additionalProperties": False}
    return {
        "type": "object",
        "properties": {name: settings},
        "required": [name],
        "additionalProperties": False,
    }


def _definitions() -> Json:
    """Of each config key what it may be, and of each section the mapping that it may be."""
    keys = {key.name: _value(key) for key in config_keys() if key.name != "seed"}
    own = [
        name.partition(".")[0] for name in keys if "." in name
    ]  # an objective's settings are a section too
    for section in dict.fromkeys([*config.SECTIONS, *own]):
        leaves = {name.partition(".")[2]: _refer(name) for name in keys if name.startswith(f"{section}.")}
        tree = {"type": "object", "properties": leaves, "additionalProperties": section in OPEN}
        if section in KINDS:
            leaves["kind"] = {"anyOf": (names := keys[section]["anyOf"])}
            tree = {**keys[section], "anyOf": [*names, tree]}
        keys[section] = tree
    return keys


OPEN = (*KINDS, "data")
"""Sections whose variants may be the user's own, with keys that only these have."""


def _mapping(properties: Json) -> Json:
    closed = "|".join(section for section in config.SECTIONS if section not in OPEN)
    own: Json = {f"^(?!({closed})\\.)[^.]+\\.": {}}
    return {
        "type": "object",
        "properties": properties,
        "patternProperties": own,
        "additionalProperties": False,
    }


def _refer(name: str) -> Json:
    return {"$ref": f"#/definitions/{name}"}


def _value(key: Key) -> Json:
    about = {"description": key.meaning} | ({"default": key.default} if key.default is not None else {})
    return ({"anyOf": [{"enum": [*key.choices]}, OWN]} if key.choices else {**key.schema}) | about


def files() -> dict[Path, str]:
    """What is written, and where."""
    return {
        PROJECT_ABLATIONS / "KEYS.md": page(),
        PROJECT_ABLATIONS / "sweep.schema.json": json.dumps(sweep_schema()) + "\n",
        PROJECT_ABLATIONS / "config.schema.json": json.dumps(config_schema()) + "\n",
    }


def main() -> int:
    """Write them."""
    for path, text in files().items():
        write_atomic(path, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
