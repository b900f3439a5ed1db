"""One axis of a space: pinned, enumerated, a range to search, or choices to search."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search_spaces.fields import SpaceError, close_matches, fit, fits, numeric_type, type_words

RANGE_KEYS = ("low", "high", "log", "points", "step")
AXIS_KEYS = (*RANGE_KEYS, "choices", "enumerate")


@dataclass(frozen=True)
class Pinned:
    """One value for every trial."""

    value: Any

    def words(self) -> str:
        return show(self.value)


@dataclass(frozen=True)
class Enumerated:
    """Every value, in each combination with the other enumerated axes and with every proposal."""

    values: tuple[Any, ...]

    def words(self) -> str:
        return ", ".join(show(value) for value in self.values)


@dataclass(frozen=True)
class Range:
    """Numbers in [low, high] that a sampler proposes; `points` of them, or every `step`, make the grid."""

    low: float
    high: float
    log: bool = False
    points: int | None = None
    step: float | None = None
    whole: bool = False  # the field is an int

    def distribution(self) -> BaseDistribution:
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def position(self, value: float) -> float:
        """Where a value lies, from 0 at `low` to 1 at `high`, on the axis' own scale."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def grid(self, name: str) -> list[Any]:
        """The points from low to high; six significant digits, so that they read well and are the same everywhere."""
        if self.step is not None:
            count = round((self.high - self.low) / self.step) + 1
            values = [self.low + k * self.step for k in range(count)]
        elif self.points is not None:
            parts = [k / (self.points - 1) for k in range(self.points)]
            if self.log:
                values = [self.low * (self.high / self.low) ** part for part in parts]
            else:
                values = [self.low + (self.high - self.low) * part for part in parts]
        else:
            raise SpaceError(
                f"a grid needs the points of every searched axis, and {name} has none; "
                f"set space.{name}.points=4, or choose sampler=tpe with proposals=N"
            )
        inner = [float(f"{value:.6g}") for value in values[1:-1]]
        values = [self.low, *inner, self.high]
        if not self.whole:
            return values
        whole = [round(value) for value in values]
        if len(set(whole)) < len(whole):
            raise SpaceError(
                f"{name} has fewer whole numbers from {show(self.low)} to {show(self.high)} than points={self.points} "
                f"(they round to {whole}); lower space.{name}.points"
            )
        return whole

    def words(self) -> str:
        details = ["log"] if self.log else []
        details += [f"{self.points} points"] if self.points else []
        details += [f"step {show(self.step)}"] if self.step else []
        tail = f" ({', '.join(details)})" if details else ""
        return f"{show(self.low)} to {show(self.high)}{tail}"


@dataclass(frozen=True)
class Choices:
    """Values without an order of which a sampler proposes one."""

    values: tuple[Any, ...]

    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution(self.values)

    def grid(self, name: str) -> list[Any]:
        return list(self.values)

    def words(self) -> str:
        return ", ".join(show(value) for value in self.values)


Axis = Pinned | Enumerated | Range | Choices


def show(value: Any) -> str:
    """A value as a user would type it: 0.001 as 1e-3, a tuple as a list."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, tuple | list):
        return "[" + ",".join(show(item) for item in value) + "]"
    if isinstance(value, float):
        text = f"{value:.6g}"
        if value != 0 and abs(value) < 0.01:
            mantissa, exponent = f"{value:.5e}".split("e")
            text = f"{float(mantissa):g}e{int(exponent)}"
        return text
    return str(value)


def parse_axis(name: str, written: Any, hint: Any) -> Axis:
    """One axis as it stands in the YAML, for a field of type `hint`.

    A value that fits the field pins it, a list of such values enumerates them (so for a field that holds a list,
    `[400, 800]` pins and `[[400], [400, 800]]` enumerates). `{low, high, log, points, step}` and `{choices: [...]}`
    are searched, `{enumerate: [...]}` says enumeration in words.
    """
    if isinstance(written, Mapping):
        return _parse_mapping(name, written, hint)
    if _is_list(written) and not fits(written, hint):
        return Enumerated(_values(name, written, hint))
    return Pinned(fit(written, hint, name))


def _parse_mapping(name: str, written: Mapping[str, Any], hint: Any) -> Axis:
    for key in written:
        if key not in AXIS_KEYS:
            raise SpaceError(f"axis {name} has no key {key!r}{close_matches(key, AXIS_KEYS)}")
    for key in ("choices", "enumerate"):
        if key in written:
            if len(written) > 1:
                others = ", ".join(sorted(set(written) - {key}))
                raise SpaceError(f"axis {name} mixes {key} with {others}; write either {key} or low and high")
            if not _is_list(written[key]):
                raise SpaceError(f"axis {name}: {key} must be a list, got {written[key]!r}")
    if "enumerate" in written:
        return Enumerated(_values(name, written["enumerate"], hint))
    if "choices" in written:
        values = _values(name, written["choices"], hint)
        _refuse_single(name, len(values), values[0])
        for value in values:
            if not isinstance(value, bool | int | float | str | None):
                raise SpaceError(
                    f"axis {name}: a searched choice is a number, a text, true, false or null, got {show(value)}; "
                    f"enumerate such values: {name}: {{enumerate: [...]}}"
                )
        return Choices(values)
    return _parse_range(name, written, hint)


def _parse_range(name: str, written: Mapping[str, Any], hint: Any) -> Range:
    number = numeric_type(hint)
    if number is None:
        raise SpaceError(
            f"axis {name}: low and high need a numeric field, and {name} is {type_words(hint)}; "
            f"write {name}: {{choices: [...]}} to search it or a list to enumerate it"
        )
    missing = [key for key in ("low", "high") if key not in written]
    if missing:
        raise SpaceError(f"axis {name} needs {' and '.join(missing)}, got {dict(written)}; or pin it: {name}=VALUE")
    low, high = (fit(written[key], number, f"{name}.{key}") for key in ("low", "high"))
    log = fit(written.get("log", False), bool, f"{name}.log")
    points = fit(written.get("points"), int | None, f"{name}.points")
    step = fit(written.get("step"), number | None, f"{name}.step")
    if low == high:
        _refuse_single(name, 1, low)
    if low > high:
        raise SpaceError(f"axis {name} needs low < high, got {show(low)} > {show(high)}; exchange them")
    if log and low <= 0:
        raise SpaceError(f"axis {name}: a log axis needs low > 0, got {show(low)}; raise low or set log: false")
    if points is not None and points < 2:
        raise SpaceError(f"axis {name} needs points >= 2 to hold both ends, got {points}; or pin it: {name}=VALUE")
    if step is not None:
        if log or points is not None:
            other = "log" if log else "points"
            raise SpaceError(
                f"axis {name} has both step and {other}; a step is linear and makes its own points: drop one"
            )
        if step <= 0 or not math.isclose((high - low) / step, round((high - low) / step), abs_tol=1e-9):
            raise SpaceError(
                f"axis {name}: step must be positive and divide high - low, "
                f"got step {show(step)} for {show(low)} to {show(high)}"
            )
    return Range(low, high, log, points, step, whole=number is int)


def _values(name: str, written: Sequence[Any], hint: Any) -> tuple[Any, ...]:
    if not written:
        raise SpaceError(
            f"axis {name} is an empty list; give it a value, or leave the axis out for the config's default"
        )
    values = tuple(fit(value, hint, f"{name}[{place}]") for place, value in enumerate(written))
    for place, value in enumerate(values):
        if value in values[:place] and any(value == other and type(value) is type(other) for other in values[:place]):
            raise SpaceError(f"axis {name} names {show(value)} twice; every value once")
    return values


def _refuse_single(name: str, count: int, value: Any) -> None:
    if count < 2:
        raise SpaceError(
            f"axis {name} is searched but has the single value {show(value)}; pin it: {name}={show(value)}"
        )


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
