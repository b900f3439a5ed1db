"""How close does one training run with a stable trunk come to a cosine run per compute budget? (arXiv:2410.05192)

WSD, WSD-S and cyclic cosine against a cosine per budget, each with its peak learning rate tuned per budget and decided
on fresh seeds. Expected from the paper: WSD-S is no worse than cyclic cosine, no worse than WSD at equal compute of the
whole family, and close to the cosine oracles, while its family costs little more than its largest budget.
Cost: minutes on two CPU cores at scale=laptop (README, "Numbers"); scale=gpu is for one GPU and not measured.
"""

from analysis.wsd_claims import CLAIMS
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_schedules
from trainables import wsd

QUESTION = Question("wsd_budget", wsd.STUDY, about=__doc__ or "", claims=CLAIMS, show=show_schedules(CLAIMS))

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
