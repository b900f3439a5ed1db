"""The studies by name: a new one adds its line here."""

from trainables import bigram, lpn, river_valley, wsd
from trainables.study import AnyStudy

STUDIES: dict[str, AnyStudy] = {study.name: study for study in (wsd.STUDY, lpn.STUDY, river_valley.STUDY, bigram.STUDY)}
