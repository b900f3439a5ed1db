"""The space file of a study: its axes, how each scale and preset changes them, and how all of that is put together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from search_spaces.fields import SpaceError, close_matches

FOLDER = Path(__file__).parent
LAYER_KEYS = ("about", "axes", "study", "within", "seeds", "search")
SEARCH_KEYS = ("sampler", "objective", "proposals", "bracket", "eta", "compare")


@dataclass(frozen=True)
class Seeds:
    """How many seeds choose a config, and how many others decide what it is worth."""

    tuning: int
    fresh: int


@dataclass(frozen=True)
class Layer:
    """What a scale or a preset changes."""

    about: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)  # config fields that are no axes
    within: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # cell, as "method=wsd": fields set there alone
    seeds: Mapping[str, int] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)  # SEARCH_KEYS


@dataclass(frozen=True)
class Preset(Layer):
    """A ready-made experiment: what it changes at every scale, what at one, and the scales it is meant for."""

    at: tuple[str, ...] = ()  # none means all
    scales: Mapping[str, Layer] = field(default_factory=dict)


@dataclass(frozen=True)
class SpaceFile:
    """A file of this folder."""

    study: str
    axes: Mapping[str, Any]
    cells: tuple[str, ...]
    scales: Mapping[str, Layer]
    presets: Mapping[str, Preset]

    def presets_at(self, scale: str) -> list[str]:
        """The presets that a scale offers."""
        return [name for name, preset in self.presets.items() if not preset.at or scale in preset.at]


@dataclass(frozen=True)
class ResolvedSpace:
    """What one command asks for: axes for `parse`, config fields to set, seeds, and how to search."""

    axes: dict[str, Any]
    study: dict[str, Any]
    seeds: Seeds
    search: dict[str, Any]
    cells: tuple[str, ...]
    within: dict[str, dict[str, Any]] = field(default_factory=dict)

    def study_in(self, cell: Mapping[str, Any]) -> dict[str, Any]:
        """The config fields to set in a tuning cell: those of all trials, and those of this cell alone.

        >>> resolved = resolve(load("wsd"), "laptop")
        >>> resolved.study_in({"method": "cyclic_cosine"})["rewarmup_steps"]
        25
        >>> "rewarmup_steps" in resolved.study_in({"method": "wsd"})
        False
        """
        fields = dict(self.study)
        for words, more in self.within.items():
            if all(str(cell.get(axis)) == value for axis, value in _pairs(words)):
                fields.update(more)
        return fields


def load(study: str | Path) -> SpaceFile:
    """The space file of a study by its name, or any file of that form by its path (one that ends in .yaml)."""
    path = Path(study) if str(study).endswith(".yaml") else FOLDER / f"{study}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in FOLDER.glob("*.yaml"))
        raise SpaceError(f"no space file {str(study)!r}{close_matches(str(study), known)}")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:
        raise SpaceError(f"{path.name} is not readable as YAML: {error}") from error
    return read(content, path.name)


def read(content: Any, file: str = "space") -> SpaceFile:
    """A space file from its parsed YAML; SpaceError, naming the place, for unknown keys and wrong kinds."""
    top = _mapping(content, file, ("study", "axes", "cells", "scales", "presets"))
    for key in ("study", "axes", "scales", "presets"):
        if key not in top:
            raise SpaceError(f"{file} needs {key}")
    scales = {name: Layer(**_layer(layer, f"{file}: scales.{name}")) for name, layer in _named(top, "scales", file)}
    for name, layer in scales.items():
        missing = {"tuning", "fresh"} - set(layer.seeds)
        if missing:
            raise SpaceError(f"{file}: scales.{name}.seeds needs {' and '.join(sorted(missing))}")
    presets = {name: _preset(layer, f"{file}: presets.{name}", scales) for name, layer in _named(top, "presets", file)}
    if "default" not in presets:
        raise SpaceError(f"{file}: presets needs one named default; it may be empty")
    cells = _names(top.get("cells", []), f"{file}: cells")
    for cell in cells:
        if cell not in top["axes"]:
            raise SpaceError(f"{file}: cells names {cell!r}, which is no axis{close_matches(cell, top['axes'])}")
    return SpaceFile(str(top["study"]), _mapping(top["axes"], f"{file}: axes"), cells, scales, presets)


def resolve(
    file: SpaceFile,
    scale: str,
    preset: str = "default",
    space_overrides: Mapping[str, Any] | None = None,
    study_overrides: Mapping[str, Any] | None = None,
    seeds: Mapping[str, int] | None = None,
) -> ResolvedSpace:
    """The axes, config fields and seeds of one command.

    Later layers win: the file's axes, the scale, the preset, the preset at this scale, the command line. A value or a
    list replaces the axis; a range is changed where it is named (`{high: 0.03}`, `{points: 5}`). A field is either
    an axis or set under `study`: a later layer may turn one into the other, the command line may not by accident.
    """
    if scale not in file.scales:
        raise SpaceError(f"no scale {scale!r}{close_matches(scale, file.scales)}")
    if preset not in file.presets:
        raise SpaceError(f"no preset {preset!r}{close_matches(preset, file.presets_at(scale))}")
    chosen = file.presets[preset]
    if chosen.at and scale not in chosen.at:
        raise SpaceError(
            f"preset={preset} is meant for scale={' or '.join(chosen.at)}, got scale={scale}; "
            f"this scale has: {', '.join(file.presets_at(scale))}"
        )
    space_overrides, study_overrides = space_overrides or {}, study_overrides or {}
    layers = [Layer(axes=file.axes), file.scales[scale], chosen, chosen.scales.get(scale, Layer())]
    axes: dict[str, Any] = {}
    study: dict[str, Any] = {}
    for layer in layers:
        for name in layer.study:
            axes.pop(name, None)
        study.update(copy.deepcopy(dict(layer.study)))
        for name, written in layer.axes.items():
            study.pop(name, None)
            axes[name] = _overridden(axes.get(name), written)

    for name in study_overrides:
        if name in axes or name in space_overrides:
            raise SpaceError(f"study.{name} is an axis of this space; pin it with space.{name}={study_overrides[name]}")
    within: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for words, fields in layer.within.items():
            within.setdefault(words, {}).update(fields)
    for name in (*axes, *space_overrides, *study_overrides):  # what is set for all trials is not set for a cell as well
        for fields in within.values():
            fields.pop(name, None)
    for name, written in space_overrides.items():
        study.pop(name, None)
        axes[name] = _overridden(axes.get(name), written)
    study.update(study_overrides)
    lost = [cell for cell in file.cells if cell not in axes]
    if lost:
        raise SpaceError(
            f"preset={preset} takes {lost[0]!r} out of the axes, but it makes the tuning cells; pin it as an axis"
        )

    counts: dict[str, int] = {}
    search: dict[str, Any] = {}
    for layer in layers:
        counts.update(layer.seeds)
        search.update(layer.search)
    return ResolvedSpace(axes, study, _seeds({**counts, **(seeds or {})}), search, file.cells, within)


def _overridden(axis: Any, written: Any) -> Any:
    """`written` in place of `axis`; the parts of a range that it does not name stay as they were."""
    both_mappings = isinstance(written, Mapping) and isinstance(axis, Mapping)
    if both_mappings and not {"choices", "enumerate"} & {*written, *axis}:
        return {**axis, **written}
    return copy.deepcopy(written)


def _seeds(counts: Mapping[str, int]) -> Seeds:
    for name, least in (("tuning", 1), ("fresh", 0)):
        count = counts[name]
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise SpaceError(f"seeds.{name} must be a whole number of at least {least}, got {count!r}")
    return Seeds(counts["tuning"], counts["fresh"])


def _layer(content: Any, place: str, more: tuple[str, ...] = ()) -> dict[str, Any]:
    known: dict[str, tuple[str, ...] | None] = {
        "axes": None, "study": None, "within": None, "seeds": ("tuning", "fresh"), "search": SEARCH_KEYS,
    }  # fmt: skip
    layer = dict(_mapping(content, place, (*LAYER_KEYS, *more)))
    for key, names in known.items():
        layer[key] = _mapping(layer.get(key), f"{place}.{key}", names)
    layer["within"] = {words: _mapping(part, f"{place}.within.{words}") for words, part in layer["within"].items()}
    for words in layer["within"]:
        if not all(len(pair) == 2 for pair in _pairs(words)):
            raise SpaceError(
                f"{place}.within names a cell as method=wsd, or as a=1,b=2 where cells have two axes; got {words!r}"
            )
    both = sorted(set(layer["axes"]) & set(layer["study"]))
    if both:
        raise SpaceError(f"{place} has {both[0]} both as an axis and under study; write it in one of them")
    return layer


def _preset(content: Any, place: str, scales: Mapping[str, Layer]) -> Preset:
    layer = _layer(content, place, ("at", "scales"))
    layer["at"] = _names(layer.get("at", []), f"{place}.at")
    parts = _mapping(layer.get("scales"), f"{place}.scales")
    for scale in (*layer["at"], *parts):
        if scale not in scales:
            raise SpaceError(f"{place} names no known scale: {scale!r}{close_matches(scale, scales)}")
    layer["scales"] = {scale: Layer(**_layer(part, f"{place}.scales.{scale}")) for scale, part in parts.items()}
    return Preset(**layer)


def _pairs(words: str) -> list[tuple[str, ...]]:
    return [tuple(part.strip() for part in pair.split("=", 1)) for pair in words.split(",")]


def _named(top: Mapping[str, Any], key: str, file: str) -> list[tuple[str, Any]]:
    return list(_mapping(top[key], f"{file}: {key}").items())


def _names(content: Any, place: str) -> tuple[str, ...]:
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise SpaceError(f"{place} must be a list of names, got {content!r}")
    return tuple(content)


def _mapping(content: Any, place: str, known: tuple[str, ...] | None = None) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise SpaceError(f"{place} must be a mapping (name: value), got {content!r}")
    for key in content:
        if known is not None and key not in known:
            raise SpaceError(f"{place} has no key {key!r}{close_matches(key, known)}")
    return {str(key): value for key, value in content.items()}
