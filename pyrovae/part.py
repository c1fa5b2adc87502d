"""Parts: what a model is made of, declared once, in Python or in a file.

A *part* is a `torch.nn.Module` whose annotated fields are its hyper-parameters. A *role* (`Prior`,
`Family`, `Network`, ...) subclasses `Part` and says what its members answer to. A *member*
subclasses a role, is final, and is found under its `kind`, the class name in kebab case:

    class Vamp(Prior):
        # a field: annotated, validated, with or without a default
        components: PositiveInt = 100

        # the tensors are made here, once, when the shapes are known
        def setup(self, z, seen):
            self.inputs = nn.Parameter(torch.rand(self.components, *seen))

        # a distribution
        def forward(self, q, context=None):
            ...

A part lives in two phases. Constructing it checks and stores its fields, no more; the model that
it is given to then calls `setup` with the event shapes, exactly once. So shapes are typed once, on
the model, and every other one is derived.

Python and TOML build the same object: `Vamp(components=50)`, `Prior.from_spec("vamp")` and
`Prior.from_spec({"kind": "vamp", "components": 50})` all go through one pydantic model, made here
from the fields, and `part.spec()` turns the object back into the table. This file is the only
metaprogramming in the package.
"""

import copy
import difflib
import functools
import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import (
    Annotated,
    Any,
    ClassVar,
    ParamSpec,
    Self,
    TypeVar,
    dataclass_transform,
    get_origin,
)

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, create_model
from pydantic_core import ErrorDetails, core_schema
from torch import Tensor, nn

from pyrovae.errors import Error

Shape = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
"""An event shape, such as `(64,)` or `(1, 28, 28)`."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass_transform(kw_only_default=True, eq_default=False)
class Part(nn.Module, ABC):
    """A module that is declared by its fields; see the top of this file.

    Raises:
        Error: a field is missing, unknown, of the wrong type or out of range.
    """

    kind: ClassVar[str]
    members: ClassVar[dict[str, type["Part"]]]
    fields: ClassVar[type[BaseModel]]

    def __init__(self, **values: Any) -> None:
        super().__init__()
        self.assembled = False
        for name, value in check(type(self).fields, values).items():
            setattr(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Called when the fields are set; a model assembles its parts here."""

    @abstractmethod
    def setup(self, *shapes: Any) -> None:
        """Make the tensors, now that the shapes are known."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        (role,) = cls.__bases__
        if role is Part:
            cls.members = {}
            return
        if "kind" in vars(role):
            raise TypeError(f"{role.__name__} is final: wrap it instead of subclassing it.")
        if "__init__" in vars(cls):
            raise TypeError(f"{cls.__name__} has an __init__: declare its fields by annotations.")
        cls.kind = re.sub(r"(?<=[a-z])(?<![A-Z]{2}[a-z])(?=[A-Z])", "-", cls.__name__).lower()
        members: dict[str, type[Part]] = role.members  # type: ignore[attr-defined]
        known = members.get(cls.kind, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(
                f"the kind '{cls.kind}' is taken by {known.__module__}.{known.__qualname__}."
            )
        cls.fields = _model(cls.__name__, _declared(cls))
        cls.setup = _once(cls.setup)  # type: ignore[method-assign]
        members[cls.kind] = cls

    @classmethod
    def from_spec(cls, spec: Any, path: str = "") -> Self:
        """The part that a table or a bare kind declares.

        Args:
            spec: `"vamp"`, `{"kind": "vamp", "components": 50}`, or a part of this role, which is
                returned as it is.
            path: where the table stands, for error messages.
        """
        if isinstance(spec, cls):
            return spec
        if isinstance(spec, str):
            spec = {"kind": spec}
        role, known = cls.__name__.lower(), cls.members
        wanted = f"should be a{'n' * (role[0] in 'aeiou')} {role}"
        if not isinstance(spec, Mapping):
            got = f"the class {spec.__name__}" if isinstance(spec, type) else repr(spec)
            raise Error(f"{wanted}: a part, a kind or a table, got {got}", path)
        if "kind" not in spec:
            raise Error(f"the table has no 'kind'. Known: {', '.join(sorted(known))}.", path)
        kind = spec["kind"]
        values = {name: value for name, value in spec.items() if name != "kind"}
        if not isinstance(kind, str) or kind not in known:
            raise Error(unknown(role, kind, known), path)
        try:
            part = known[kind](**values)
        except Error as error:
            raise error.under(path) from None
        if not isinstance(part, cls):
            raise Error(f"{wanted}, got '{kind}'", path)
        return part

    def spec(self) -> dict[str, Any]:
        """The table that declares this part; `from_spec` builds it again, without its weights."""
        values = {name: encode(getattr(self, name)) for name in type(self).fields.model_fields}
        return {"kind": self.kind} | {
            name: value for name, value in values.items() if value is not None
        }

    def extra_repr(self) -> str:
        """The fields that are not parts themselves, for `repr`."""
        values = ((name, getattr(self, name)) for name in type(self).fields.model_fields)
        return ", ".join(
            f"{name}={value!r}" for name, value in values if not isinstance(value, nn.Module)
        )

    @classmethod
    def summary(cls) -> str:
        """The first line of the docstring."""
        return (cls.__doc__ or "").strip().splitlines()[0]

    @classmethod
    def examples(cls) -> Iterable[Self]:
        """Instances that the law tests exercise; a member with required fields gives its own."""
        return (cls(),)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(cls.from_spec)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"role": cls.__name__}


def roles() -> dict[str, type[Part]]:
    """Every role by its name in lower case."""
    return {role.__name__.lower(): role for role in Part.__subclasses__()}


def check(fields: type[BaseModel], values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The values of the fields, validated, with the defaults filled in.

    Raises:
        Error: with the dotted path of the first field at fault, what is wrong and what is allowed.
    """
    try:
        checked = fields.model_validate(plain(dict(values)))
    except ValidationError as failure:
        first = failure.errors()[0]
        raise _sentence(first, list(fields.model_fields)).under(path) from None
    return {name: getattr(checked, name) for name in fields.model_fields}


def keywords(function: Callable[..., Any]) -> type[BaseModel]:
    """The keyword-only arguments of a function as fields, for calls and tables alike."""
    signature = inspect.signature(function, eval_str=True)
    chosen = (p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY)
    return _model(function.__name__, {p.name: (p.annotation, _default(p.default)) for p in chosen})


def validated(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose keyword-only arguments are checked as fields of a part are."""
    fields, parameters = keywords(function), inspect.signature(function).parameters
    others = parameters.keys() - fields.model_fields.keys()

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        data = {name: value for name, value in kwargs.items() if name in others}
        settings = {name: value for name, value in kwargs.items() if name not in others}
        return function(*args, **data, **check(fields, settings))  # type: ignore[arg-type]

    return wrapper


def json_schema(fields: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of fields; a part is a reference to the definition of its role."""
    return _referenced(fields.model_json_schema())


def _referenced(schema: Any) -> Any:
    if isinstance(schema, dict):
        if "role" in schema:
            return {"$ref": f"#/$defs/{schema['role']}"}
        return {key: _referenced(value) for key, value in schema.items()}
    return [_referenced(item) for item in schema] if isinstance(schema, list) else schema


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that does not exist: the nearest known one, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, 1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"unknown {what} '{name}'.{hint} Known: {', '.join(names)}."


def encode(value: Any) -> Any:
    """A field's value as TOML holds it: a part is a table, a function `module:name`."""
    if isinstance(value, Part):
        return value.spec()
    if isinstance(value, tuple):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {name: encode(item) for name, item in value.items()}
    return value.address() if hasattr(value, "address") else value


def plain(value: Any) -> Any:
    """A value with lists as tuples and NumPy numbers as Python's, for strict validation."""
    if isinstance(value, (list, tuple)):
        return tuple(plain(item) for item in value)
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _model(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        validate_default=True,
    )
    return create_model(name, __config__=config, **fields)


def _declared(cls: type[Part]) -> dict[str, Any]:
    """A member's annotations and defaults, which leave the class: they would hide submodules."""
    hints = inspect.get_annotations(cls, eval_str=True)
    own = {name: hint for name, hint in hints.items() if ClassVar not in (hint, get_origin(hint))}
    fields = {name: (hint, _default(vars(cls).get(name, ...))) for name, hint in own.items()}
    for name in own:
        if getattr(getattr(cls, name, None), "__isabstractmethod__", False):
            setattr(cls, name, None)  # the field stands for a method of the role, as in Pair
        elif name in vars(cls):
            delattr(cls, name)
    return fields


def _default(value: Any) -> Any:
    if value is inspect.Parameter.empty:
        return ...
    if isinstance(value, Part):
        return Field(default_factory=functools.partial(copy.deepcopy, value))
    return value


def _once(setup: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(setup)
    def guarded(self: Part, *shapes: Any) -> None:
        if self.assembled:
            raise Error(
                f"this {self.kind} is already part of a model: give each place a part of its own"
            )
        self.assembled = True
        setup(self, *shapes)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                raise Error(f"{self.kind}.{name} should be an nn.Parameter or nn.Buffer")

    return guarded


def _sentence(error: ErrorDetails, known: list[str]) -> Error:
    """Pydantic's first complaint as one sentence with a dotted path."""
    path = ".".join(str(step) for step in error["loc"])
    inner = error.get("ctx", {}).get("error")
    if isinstance(inner, Error):
        return inner.under(path)
    if error["type"] == "extra_forbidden":
        return Error(
            unknown("field", error["loc"][-1], known), ".".join(map(str, error["loc"][:-1]))
        )
    if error["type"] == "missing":
        return Error("is required", path)
    message = re.sub(r"^(Input|Value) ", "", error["msg"])
    message = re.sub("[Tt]uple", "list", message).removesuffix(" after validation")
    example = ", such as [2]" if error["type"] == "tuple_type" else ""
    return Error(f"{message[0].lower()}{message[1:]}{example}, got {error['input']!r}", path)
