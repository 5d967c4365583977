"""TOML files of settings, held against trees of frozen dataclasses.

A table is a dataclass; its fields say which settings there are, of which types, and what they are
when they are left out. What makes a value sensible is checked by the dataclass itself.
"""

import difflib
import re
import reprlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from specpipe.errors import UserError

_TYPE_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_TOO_LARGE = 2**63  # what messages can carry

Tables = Mapping[str, type[Any]]
"""The dataclass of each table."""

_Table = TypeVar("_Table")


def read_toml(path: Path) -> dict[str, Any]:
    """What a configuration file says.

    Raises:
        UserError: if it can't be read, or isn't TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read the configuration file {path}: {reason}") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a TOML file: {reason}; mend it") from None


def replaced(
    base: _Table, table: str, given: Mapping[str, Any], where: str, tables: Tables
) -> _Table:
    """A copy of one table with the settings given, checked for name, type and range.

    Args:
        base: the table.
        table: its name.
        given: settings.
        where: " in FILE", for messages.
        tables: all there are.

    Raises:
        UserError: for a setting that is not there, or a value that it can't have.
    """
    types = get_type_hints(type(base))
    changes = {}
    for name, value in given.items():
        if name not in types:
            raise unknown(name, value, where, tables, table=table)
        changes[name] = checked(value, types[name], f"{table}.{name}", where)
    try:
        return replace(base, **changes)  # type: ignore[type-var]
    except UserError as error:
        raise UserError(f"{table}{where}: {error}") from None


def checked(value: Any, wanted: Any, name: str, where: str) -> Any:
    """The value, if it has the type that the field's annotation names (None aside).

    Raises:
        UserError: if it has not.
    """
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Mapping:
        return _checked_map(value, arguments[1], name, where)
    if origin is Sequence:
        # A single stop text needs no brackets.
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(checked(item, arguments[0], f"an entry of {name}", where) for item in items)
    if origin is Literal:
        arguments = (str,)
    kind = next(kind for kind in arguments or (wanted,) if kind is not NoneType)
    if isinstance(value, int) and not -_TOO_LARGE < value < _TOO_LARGE:
        raise UserError(f"{name} has a number of more than 64 bits{where}: choose a smaller one")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        return float(value)
    if isinstance(value, kind) and (is_number or kind is not int):
        return value
    raise UserError(f"{name} is {reprlib.repr(value)}{where}: it must be {_TYPE_NAMES[kind]}")


def _checked_map(value: Any, kind: Any, name: str, where: str) -> dict[int, Any]:
    """A table from token ids, which TOML and JSON can only write as texts."""
    if not isinstance(value, Mapping):
        raise UserError(f"{name} is {reprlib.repr(value)}{where}: it is a table, token id = number")
    values = {}
    for key, item in value.items():
        if not re.fullmatch("[0-9]{1,10}", str(key)):
            raise UserError(f"{name} names {key!r:.40}{where}: give token ids, such as 123 = -5")
        values[int(key)] = checked(item, kind, f"{name} of token {key}", where)
    return values


def unknown(
    name: str,
    value: Any,
    where: str,
    tables: Tables,
    *,
    plain: Sequence[str] = (),
    table: str | None = None,
) -> UserError:
    """The error for a name that isn't there, with the nearest that is.

    Args:
        name: what was set.
        value: what to.
        where: " in FILE".
        tables: that there are.
        plain: settings that stand in none.
        table: the one that it was set in, if any.
    """
    if table is None and isinstance(value, Mapping):
        what, here = f"table [{_plain(name)}]", list(tables)
    elif table is None:
        what, here = f"setting {_plain(name)}", [*plain, *tables]
    else:
        what, here = f"setting {table}.{_plain(name)}", _names(tables[table])
    near = _nearest(name, here)
    if near is None and not isinstance(value, Mapping):
        elsewhere = {own: f"{other}.{own}" for other in tables for own in _names(tables[other])}
        near = elsewhere.get(_nearest(name, elsewhere) or "")
    hint = f"did you mean {near}?" if near else f"there are {', '.join(here)}"
    return UserError(f"unknown {what}{where}: {hint}")


def _names(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind)]


def _nearest(name: str, known: Iterable[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1)), None)


def _plain(name: str) -> str:
    """A name as the user wrote it, unless that would break the line."""
    return name if name.isprintable() and name else repr(name)
