"""Types of config fields: which value fits which field, and what the field's own comment says."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import io
import math
import tokenize
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class SpaceError(ValueError):
    """A space, a scale or a preset that cannot be honoured: the rule, the value and the way out."""


def field_types(config: type) -> dict[str, Any]:
    """Name -> type of the fields of a config dataclass, in their order.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     peak_lr: float = 1e-3
    >>> field_types(Config)
    {'peak_lr': <class 'float'>}
    """
    hints = get_type_hints(config)
    return {field.name: hints[field.name] for field in dataclasses.fields(config) if field.init}


def field_comments(config: type) -> dict[str, str]:
    """Name -> the comment beside the field in the source (its unit and range); none where the source is not at hand."""
    try:
        source = inspect.getsource(config)
    except (OSError, TypeError):
        return {}
    names = {field.name for field in dataclasses.fields(config)}
    comments: dict[str, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = token.line.split(":")[0].strip()
        if token.type == tokenize.COMMENT and name in names:
            comments[name] = token.string.lstrip("# ").strip()
    return comments


def close_matches(name: str, known: Iterable[str]) -> str:
    """The tail of an error about an unknown name: what was probably meant, and what there is."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=3)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"{meant} There are: {', '.join(known)}"


_WORDS: dict[Any, str] = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}


def type_words(hint: Any) -> str:
    """A type as a user would say it.

    >>> type_words(tuple[int, ...] | None), type_words(Literal["wsd", "cosine"])
    ('list (whole number, ...) or null', 'one of wsd, cosine')
    """
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(hint))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(type_words(member) for member in get_args(hint))
    if get_origin(hint) is tuple:
        return f"list ({', '.join('...' if item is Ellipsis else type_words(item) for item in get_args(hint))})"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def numeric_type(hint: Any) -> type[int] | type[float] | None:
    """int or float where the field is a number (an optional one included), else None."""
    if get_origin(hint) in (Union, types.UnionType):
        found = {numeric_type(member) for member in get_args(hint) if member is not type(None)}
        return found.pop() if len(found) == 1 else None
    return hint if hint in (int, float) else None


def fits(value: object, hint: Any) -> bool:
    """Does `value` fit a field of this type?"""
    try:
        fit(value, hint)
    except SpaceError:
        return False
    return True


def fit(value: Any, hint: Any, name: str = "value") -> Any:
    """`value` as a field of this type holds it (3 for a float field is 3.0, a list for a tuple field a tuple).

    Raises SpaceError, naming the field. Nothing else is converted: 3.0 is no whole number and "3" no number.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        # float last: 3 stays a whole number where both would do.
        for member in sorted(get_args(hint), key=lambda member: member is float):
            if fits(value, member):
                return fit(value, member, name)
    elif hint is Any or hint is object:
        return value
    elif hint is type(None):
        if value is None:
            return None
    elif origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in get_args(hint)):
            return value
        if isinstance(value, str):
            raise SpaceError(f"{name} has no choice {value!r}{close_matches(value, map(str, get_args(hint)))}")
    elif origin is tuple:
        items = get_args(hint)
        if isinstance(value, Sequence) and not isinstance(value, str):
            hints = [items[0]] * len(value) if Ellipsis in items else list(items)
            if len(hints) == len(value):
                return tuple(fit(item, hint, name) for item, hint in zip(value, hints, strict=True))
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        if isinstance(value, str) and _is_number(value):
            raise SpaceError(f"{name} must be a number, got the text {value!r}; in YAML write a dot: 1.0e-3, not 1e-3")
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(hint, type):
        if isinstance(value, hint):
            return value
    elif isinstance(value, str):  # a callable enters by import path
        return value
    raise SpaceError(f"{name} must be {type_words(hint)}, got {value!r} ({type(value).__name__})")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
