"""A pair of models on some hardware, as a file of step times for the simulator.

```toml
name = "what it is"
source = "who measured it, where to read it"
step_ms = 5.1                   # one draft step
passes_ms = { 1 = 39.6, 8 = 41.0 }   # the target's forward pass, by rows
acceptance = 0.8                # optional, as are grain, latency_ms, contention and jitter
```
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specpipe.errors import UserError
from specpipe.simulated_workers import Hardware

_SETTINGS = {
    *("name", "source", "step_ms", "passes_ms", "acceptance"),
    *("grain", "latency_ms", "contention", "jitter"),
}


@dataclass(frozen=True, slots=True)
class Profile:
    """See this module; `acceptance` is None where the file names none."""

    name: str
    source: str
    hardware: Hardware
    acceptance: float | None


def read_profile(path: str | Path) -> Profile:
    """Read a file.

    Raises:
        UserError: if it can't be read, or has a setting that is unknown, missing or out of range.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the profile {path}: {error.strerror or error}") from None
    except ValueError as error:
        cause = " ".join(str(error).split())
        raise UserError(f"{path} is not a TOML file: {cause}; mend it") from None
    if unknown := sorted(data.keys() - _SETTINGS):
        raise UserError(
            f"unknown setting {unknown[0]} in {path}: there are {', '.join(sorted(_SETTINGS))}"
        )
    hardware = Hardware(
        _number(data, "step_ms", path, above=0.0) / 1000,
        _passes(data.get("passes_ms"), path),
        grain=_number(data, "grain", path, default=0.0, most=1.0),
        latency=_number(data, "latency_ms", path, default=0.0) / 1000,
        contention=_number(data, "contention", path, default=0.0),
        jitter=_number(data, "jitter", path, default=0.0, most=1.0),
    )
    acceptance = None
    if "acceptance" in data:
        acceptance = _number(data, "acceptance", path, most=1.0)
    return Profile(str(data.get("name", path)), str(data.get("source", "")), hardware, acceptance)


def _passes(table: Any, path: str | Path) -> tuple[tuple[int, float], ...]:
    if not isinstance(table, dict) or not table:
        raise UserError(
            f"passes_ms in {path} is {table!r}: give milliseconds by rows, as in {{ 1 = 12.0 }}"
        )
    found = []
    for rows in table:
        if not (rows.isdecimal() and int(rows) >= 1):
            raise UserError(f"passes_ms in {path} has {rows!r} rows: give a number from 1 on")
        found.append((int(rows), _number(table, rows, path, above=0.0) / 1000))
    return tuple(sorted(found))


def _number(
    table: dict[str, Any],
    name: str,
    path: str | Path,
    *,
    default: float | None = None,
    above: float | None = None,
    most: float = 1e9,
) -> float:
    """A number from 0 (or above `above`) to `most`."""
    value: Any = table.get(name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and 0 <= value <= most and (above is None or value > above):
        return float(value)
    least = "0" if above is None else f"above {above:g}"
    raise UserError(f"{name} in {path} is {value!r}: give a number, {least} to {most:g}")
