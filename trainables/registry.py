"""The studies by name: a new one adds its line here."""

from trainables import (
    benign,
    benign_linear,
    bigram,
    cot_parity,
    dyck,
    flatness,
    lpn,
    masked_lm,
    river_valley,
    rnn_retrieval,
    sam_bias,
    sam_net,
    skill_neurons,
    wsd,
)
from trainables.study import AnyStudy

STUDIES: dict[str, AnyStudy] = {
    study.name: study
    for study in (
        *(wsd.STUDY, flatness.STUDY, sam_bias.STUDY, lpn.STUDY, river_valley.STUDY, bigram.STUDY),
        *(cot_parity.STUDY, rnn_retrieval.STUDY, dyck.STUDY),
        *(benign_linear.STUDY, benign.STUDY, sam_net.STUDY, masked_lm.STUDY, skill_neurons.STUDY),
    )
}
