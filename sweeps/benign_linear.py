"""Where does a linear model fit wrong labels without harm, and what repairs it where it does not? (arXiv:2206.00501)

Noise rates times dimensions per sample p / n, each as it is, stopped early on held-out inputs, and with students of an
early teacher's hard and soft labels. Expected: without noise no harm anywhere; with noise an interpolating model loses
most near p = n and less the wider it is; stopping and self-training win it back where wide models need not.
Other questions are presets: the place of the boundary by a search (boundary), a signal that grows with the width
(scaled), tuned rates and decays (tune), teachers and rounds (teachers), clean error against compute (budgets).
Cost: a minute or two on two CPU cores at scale=laptop, all ratios in one program; gpu and paper not measured.
"""

from analysis.benign_linear_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import benign_linear

QUESTION = Question(
    "benign_linear", benign_linear.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING)
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
