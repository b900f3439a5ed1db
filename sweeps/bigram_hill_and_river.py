"""Which part of a bigram model does a decay improve, and when is that worth more than a cosine? (arXiv:2410.05192)

A table of logits on contexts with one or with many possible next tokens, under WSD, WSD-S, a cosine per budget and
cyclic cosine. Expected: the decay lowers the KL of uncertain rows, which are steep and jitter, and hardly that of
deterministic ones, which are flat and slow; at low peaks WSD is ahead, at high ones cosine. With equally frequent
contexts (preset=equal_contexts) nothing slow is left to learn, and cosine should win.
Cost: about two CPU minutes at scale=laptop (README, "Numbers").
"""

from analysis.bigram_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import bigram

QUESTION = Question(
    "bigram_hill_and_river", bigram.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING)
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
