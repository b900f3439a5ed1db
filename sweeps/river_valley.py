"""In which regime does a stable rate with a short decay beat a cosine? A two-dimensional valley (arXiv:2410.05192).

WSD, WSD-S, a cosine per budget and cyclic cosine over peak rate, budget and noise. Expected from the paper's picture:
the stable stretch hurries down the river while it bounces on the hillsides, and the decay removes the bouncing. So WSD
should win where the river is what is left to gain (long budget, little noise), and lose where the noise that is left
at the end decides (short budget, much noise). preset=regime_map draws the border from 10,080 trials.
Cost: about one CPU minute at scale=laptop, two or three for preset=regime_map (README, "Numbers").
"""

from analysis.river_valley_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import river_valley

QUESTION = Question(
    "river_valley", river_valley.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING)
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
