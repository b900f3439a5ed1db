"""Does a net that fits noisy labels do harm, where does that begin, and what repairs it? (arXiv:2206.00501)

Networks of three widths learn clothes from partly wrong labels until they fit them, at three noise rates: left as they
are, stopped early, or as teachers of a new net by their own labels, hard or soft. Expected from the paper: no noise, no
harm; with noise the net that can just fit its labels is hurt most; much wider ones less; self-training repairs.
Other questions are presets: the boundary by a search (boundary), natural noise (natural), time (budgets), ResNets.
Cost: minutes on two CPU cores at scale=laptop; scale=gpu and scale=paper are for GPUs and not measured.
"""

from analysis.benign_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import benign

QUESTION = Question(
    "benign_noise", benign.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING)
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
