"""The studies by name: a new one adds its line here."""

from trainables import bigram, cot_parity, dyck, flatness, lpn, river_valley, rnn_retrieval, sam_bias, wsd
from trainables.study import AnyStudy

STUDIES: dict[str, AnyStudy] = {
    study.name: study
    for study in (
        *(wsd.STUDY, flatness.STUDY, sam_bias.STUDY, lpn.STUDY, river_valley.STUDY, bigram.STUDY),
        *(cot_parity.STUDY, rnn_retrieval.STUDY, dyck.STUDY),
    )
}
