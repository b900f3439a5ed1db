"""The readings by study: a new study adds its line here."""

from analysis import (
    benign_linear_reading,
    benign_reading,
    bigram_reading,
    cot_parity_reading,
    dyck_reading,
    flatness_reading,
    lpn_reading,
    masked_lm_reading,
    river_valley_reading,
    rnn_retrieval_reading,
    sam_bias_reading,
    sam_net_reading,
    skill_neurons_reading,
)
from analysis.figures import by_groups
from analysis.frontier import frontier
from analysis.reading import Reading
from analysis.records import Records
from analysis.wsd_claims import CLAIMS, STATISTICS

WSD = Reading(
    claims=CLAIMS,
    statistics=STATISTICS,
    figures=by_groups("method"),
    summary=lambda records: frontier(records, by="method").to_pandas(),
    one_regime=True,
)
READINGS: dict[str, Reading] = {
    "wsd": WSD,
    "flatness": flatness_reading.READING,
    "sam_bias": sam_bias_reading.READING,
    "lpn": lpn_reading.READING,
    "river_valley": river_valley_reading.READING,
    "bigram": bigram_reading.READING,
    "cot_parity": cot_parity_reading.READING,
    "rnn_retrieval": rnn_retrieval_reading.READING,
    "dyck": dyck_reading.READING,
    "benign_linear": benign_linear_reading.READING,
    "benign": benign_reading.READING,
    "sam_net": sam_net_reading.READING,
    "masked_lm": masked_lm_reading.READING,
    "skill_neurons": skill_neurons_reading.READING,
}


def reading_of(study: str) -> Reading:
    """The reading of a study by its name; one without its own, such as curves from elsewhere, is read as schedules."""
    return READINGS.get(study, WSD)


def by_study(records: Records) -> dict[str, Records]:
    """The records of each study among them."""
    studies = sorted(set(records.trials.column("study").to_pylist()))
    return {study: records.where(study=study) for study in studies}
