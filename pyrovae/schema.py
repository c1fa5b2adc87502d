"""The JSON schema of spec files, with which an editor completes and checks a spec.

Each role is a definition, one of its members by kind or as a table; a member's is made of its
fields. Where a field takes one value, a list of such values is a choice.
"""

from pyrovae.data import load
from pyrovae.evaluate import log_likelihood
from pyrovae.fitting import fit
from pyrovae.models import Model
from pyrovae.part import Part, json_schema, keywords, roles
from pyrovae.spaces import Range, settings
from pyrovae.specs import TAKEN
from pyrovae.variants import Tree


def schema() -> Tree:
    """The JSON schema of spec files, for editors."""
    parts: Tree = {}
    for role in roles().values():
        kinds = [{"$ref": f"#/$defs/{role.__name__}.{kind}"} for kind in sorted(role.members)]
        parts[role.__name__] = {"anyOf": [{"enum": sorted(role.members)}, *kinds]}
        for kind, member in role.members.items():
            parts[f"{role.__name__}.{kind}"] = _member_schema(kind, member)
    train, data, evaluate = (json_schema(keywords(f)) for f in (fit, load, log_likelihood))
    model = {"$ref": "#/$defs/Model"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pyrovae spec",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "import": {"type": "array", "items": {"type": "string"}},
            "data": data,
            "train": train,
            "evaluate": evaluate,
            "seeds": {"type": "integer", "minimum": 1},
            "grid": {
                "type": "object",
                "additionalProperties": {"anyOf": [{"type": "array"}, {"type": "object"}]},
            },
            "search": json_schema(keywords(settings))
            | {
                "additionalProperties": {
                    "anyOf": [
                        json_schema(keywords(Range)),
                        {"type": "array", "minItems": 1},
                        {"type": "object"},
                    ]
                },
            },
            "model": model,
            "models": {
                "type": "object",
                "additionalProperties": {"anyOf": [model, {"required": ["extends"]}]},
            },
        },
        "$defs": parts,
    }


def _member_schema(kind: str, member: type[Part]) -> Tree:
    own = json_schema(member.fields)
    properties = {name: _or_choice(rule) for name, rule in own.get("properties", {}).items()}
    required = own.get("required", [])
    if issubclass(member, Model):
        properties |= {"train": {"type": "object"}, "extends": {"type": "string"}}
        required = [name for name in required if name not in TAKEN]
    return own | {
        "properties": {"kind": {"const": kind}} | properties,
        "required": ["kind", *required],
        "description": member.summary(),
    }


def _or_choice(rule: Tree) -> Tree:
    """The rule of a field, or a list of values that obey it, where the field takes no list."""
    options = rule.get("anyOf", [rule])
    for option in options:
        if isinstance(part := option.get("additionalProperties"), dict):
            option["additionalProperties"] = _or_choice(part)
    if any(option.get("type") == "array" for option in options):
        return rule
    return {"anyOf": [rule, {"type": "array", "items": rule, "minItems": 1}]}
