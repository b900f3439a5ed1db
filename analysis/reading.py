"""How the records of a study are read: its claims, its figures, and the table that a sweep ends with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from analysis.claims import Claim, Statistic
from analysis.records import Records


@dataclass(frozen=True)
class Reading:
    """One study's way from its tables to what is said about it.

    claims: declared before a sweep; statistics: those that decide them, by name.
    figures: file name -> records to a figure; raises RecordsError, with what is missing, where they allow none.
    summary: records -> the table printed at the end of a sweep, a row per cell and condition.
    one_regime: whether problems of different size or data are read one by one, their losses not being comparable.
    """

    claims: tuple[Claim, ...]
    statistics: Mapping[str, Statistic]
    figures: Mapping[str, Callable[[Records], Figure]]
    summary: Callable[[Records], pd.DataFrame]
    one_regime: bool = False
