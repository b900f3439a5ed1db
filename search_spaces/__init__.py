"""Where trials may lie: one YAML file per study, read into Optuna distributions."""

from search_spaces.axes import Choices, Enumerated, Pinned, Range
from search_spaces.fields import SpaceError, field_comments, field_types
from search_spaces.files import Layer, Preset, ResolvedSpace, Seeds, SpaceFile, load, resolve
from search_spaces.space import AxisRow, Space, parse

__all__ = [
    "load", "resolve", "parse", "field_types", "field_comments",
    "Space", "SpaceFile", "ResolvedSpace", "Layer", "Preset", "Seeds",
    "AxisRow", "Range", "Choices", "Enumerated", "Pinned", "SpaceError",
]  # fmt: skip
