"""Timelines: what a trial's knobs (learning rate, SAM radius, label noise ...) do at every step.

A timeline is a tuple of segments. Within a segment each knob is constant or follows one ramp over the whole segment.
Everything here is pure: a knob's value is a function of the timeline and the absolute step, never of a stored state,
so a timeline can be cut, resumed and shared anywhere. `prefix_json` is the canonical form of what happened up to a
step; how a timeline was cut does not show in it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import cos, isfinite, pi, sqrt

from trainables.common import imports


def _linear(x: float, start: float, end: float) -> float:
    return start + (end - start) * x


def _cosine(x: float, start: float, end: float) -> float:
    return end + (start - end) * (1 + cos(pi * x)) / 2


SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "one_minus_sqrt": lambda x, start, end: end + (start - end) * (1 - sqrt(x)),
    "square": lambda x, start, end: end + (start - end) * (1 - x * x),
    "inverse": lambda x, start, end: 1 / (x / end + (1 - x) / start),
    "exponential": lambda x, start, end: start * (end / start) ** x,
    "mirror_cosine": lambda x, start, end: 2 * _linear(x, start, end) - _cosine(x, start, end),
}
"""Value of a ramp at progress x in [0, 1], between start and end (arXiv:2410.05192; epfml/schedules-and-scaling).

`inverse` interpolates 1/value linearly, which is optimal for noise on a quadratic; it and `exponential` need both ends
above zero.
"""
POSITIVE_SHAPES = frozenset({"inverse", "exponential"})


@lru_cache
def _shape(name: str) -> Callable[[float, float, float], float]:
    if name in SHAPES:
        return SHAPES[name]
    if ":" not in name:
        raise ValueError(f"no ramp shape {name!r}; there are {', '.join(SHAPES)}, or 'package.module:function'")
    multiplier = imports.load(name)
    return lambda x, start, end: end + (start - end) * multiplier(x)


def _plain_float(value: float) -> float:
    """The one spelling of a number: 1, 1.0 and numpy's 1.0 are equal, and so must be their canonical texts."""
    return float(value) + 0.0


@dataclass(frozen=True)
class Ramp:
    """A knob's way from `start` to `end` over one segment.

    `shape` is a name in SHAPES or an import path "package.module:function" to a function of progress x in [0, 1] that
    falls from 1 to 0; `source` is that function's fingerprint, filled in by `ramp()`.
    """

    start: float
    end: float
    shape: str = "linear"
    source: str | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.start) and isfinite(self.end)):
            raise ValueError(f"a ramp needs finite ends, got {self.start} and {self.end}")
        object.__setattr__(self, "start", _plain_float(self.start))
        object.__setattr__(self, "end", _plain_float(self.end))
        if self.shape in POSITIVE_SHAPES and not (self.start > 0 and self.end > 0):
            raise ValueError(
                f"a ramp of shape {self.shape!r} needs both ends above 0, got {self.start} and {self.end}; "
                "set min_lr_ratio above 0 or take another shape"
            )

    @property
    def falling(self) -> bool:
        return self.end < self.start

    def value(self, done: int, steps: int) -> float:
        """Value at the ramp's step number `done`, counted from 0, of `steps`.

        A fall would arrive at its end one step after its last; a rise arrives at its last step. So a decay to zero and
        a warm-up from zero are positive at every step that trains.

        >>> [round(Ramp(1.0, 0.0).value(k, 2), 2) for k in range(2)]
        [1.0, 0.5]
        >>> [round(Ramp(0.0, 1.0).value(k, 2), 2) for k in range(2)]
        [0.5, 1.0]
        """
        progress = done / steps if self.falling else (done + 1) / steps
        return _shape(self.shape)(progress, self.start, self.end)


def ramp(start: float, end: float, shape: str = "linear") -> Ramp:
    """A Ramp whose shape is known to exist; the source of a user's own shape is fingerprinted.

    Raises ValueError for an unknown shape, or a user's shape that does not fall from 1 to 0.
    """
    function = _shape(shape)
    if shape in SHAPES:
        return Ramp(start, end, shape)
    ends = function(0.0, 1.0, 0.0), function(1.0, 1.0, 0.0)
    if not (abs(ends[0] - 1) < 1e-6 and abs(ends[1]) < 1e-6):
        raise ValueError(f"a decay shape must fall from 1 at x=0 to 0 at x=1; {shape} gives {ends[0]} and {ends[1]}")
    return Ramp(start, end, shape, imports.fingerprint(shape))


@dataclass(frozen=True)
class Segment:
    """`steps` optimizer steps under `knobs`: pairs (name, constant or Ramp), sorted by name."""

    steps: int
    knobs: tuple[tuple[str, float | Ramp], ...]

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"a segment needs steps >= 0, got {self.steps}")
        for name, value in self.knobs:
            if not isinstance(value, Ramp) and not isfinite(value):
                raise ValueError(f"a knob needs a finite value, got {name} = {value}")
        plain = [(name, value if isinstance(value, Ramp) else _plain_float(value)) for name, value in self.knobs]
        object.__setattr__(self, "knobs", tuple(sorted(plain, key=lambda knob: knob[0])))

    @property
    def constant(self) -> bool:
        return not any(isinstance(value, Ramp) for _, value in self.knobs)

    @property
    def falling(self) -> bool:
        return any(isinstance(value, Ramp) and value.falling for _, value in self.knobs)


Timeline = tuple[Segment, ...]


def segment(steps: int, **knobs: float | Ramp) -> Segment:
    """`segment(100, lr=3e-3)`: a Segment from keywords."""
    return Segment(steps, tuple(knobs.items()))


def total_steps(timeline: Timeline) -> int:
    return sum(part.steps for part in timeline)


def canonical(timeline: Timeline) -> Timeline:
    """The same timeline with empty segments dropped and adjacent equal constants merged.

    >>> canonical((segment(3, lr=1.0), segment(0, lr=2.0), segment(4, lr=1.0))) == (segment(7, lr=1.0),)
    True
    """
    parts: list[Segment] = []
    for part in timeline:
        if part.steps == 0:
            continue
        if parts and part.constant and parts[-1].knobs == part.knobs:
            parts[-1] = Segment(parts[-1].steps + part.steps, part.knobs)
        else:
            parts.append(part)
    return tuple(parts)


@dataclass(frozen=True)
class Placed:
    """A segment at its absolute place: steps start .. start + segment.steps - 1."""

    segment: Segment
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.segment.steps

    def at(self, step: int) -> dict[str, float]:
        """Every knob's value at an absolute step. Raises IndexError outside the segment."""
        if not self.start <= step < self.stop:
            raise IndexError(f"step {step} lies outside the segment {self.start}..{self.stop - 1}")
        done = step - self.start
        return {
            name: value.value(done, self.segment.steps) if isinstance(value, Ramp) else value
            for name, value in self.segment.knobs
        }


def place(timeline: Timeline) -> tuple[Placed, ...]:
    """The canonical segments with their absolute starts."""
    placed, start = [], 0
    for part in canonical(timeline):
        placed.append(Placed(part, start))
        start += part.steps
    return tuple(placed)


def knobs_at(timeline: Timeline, step: int) -> dict[str, float]:
    """Every knob's value at an absolute step. Raises IndexError after the end."""
    for placed in place(timeline):
        if step < placed.stop:
            return placed.at(step)
    raise IndexError(f"step {step} lies after the timeline's end at {total_steps(timeline)}")


@lru_cache(maxsize=100_000)
def _segment_json(part: Segment, done: int) -> str:
    knobs = {
        name: [value.start, value.end, value.shape, value.source] if isinstance(value, Ramp) else value
        for name, value in part.knobs
    }
    # A ramp's own length decides its values; of a constant only what was done counts.
    return json.dumps([done, None if part.constant else part.steps, knobs], sort_keys=True)


def segment_at(placed: Sequence[Placed], step: int) -> Placed:
    """The segment that trains `step`."""
    return next(part for part in placed if part.start <= step < part.stop)


def signature(placed: Sequence[Placed], step: int) -> tuple[object, ...]:
    """Equal for timelines that train alike at `step`: a ramp is one by its whole length, a constant by its value."""
    part = segment_at(placed, step)
    return part.segment.knobs if part.segment.constant else (part.segment.knobs, part.segment.steps, part.start)


def common_steps(one: Sequence[Placed], other: Sequence[Placed]) -> int:
    """Steps that two timelines train alike before they part."""
    step, end = 0, min(one[-1].stop, other[-1].stop)
    while step < end and signature(one, step) == signature(other, step):
        step = min(segment_at(one, step).stop, segment_at(other, step).stop)
    return min(step, end)


def prefix_json(placed: Sequence[Placed], step: int) -> str:
    """Canonical text of what a timeline does before absolute step `step`: equal texts, equal training.

    >>> one = place((segment(9, lr=1.0), segment(2, lr=Ramp(1.0, 0.1))))
    >>> other = place((segment(4, lr=1.0), segment(5, lr=1.0)))
    >>> prefix_json(one, 7) == prefix_json(other, 7), prefix_json(one, 10) == prefix_json(other, 9)
    (True, False)
    """
    parts = [_segment_json(p.segment, min(step, p.stop) - p.start) for p in placed if p.start < step]
    if step < 0 or (step > 0 and (not placed or step > placed[-1].stop)):
        raise IndexError(f"step {step} lies outside the timeline")
    return "[" + ",".join(parts) + "]"
