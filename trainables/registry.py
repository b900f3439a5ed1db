"""The studies by name: a new one adds its line here."""

from trainables import wsd
from trainables.study import StagedStudy

STUDIES: dict[str, StagedStudy] = {study.name: study for study in (wsd.STUDY,)}
