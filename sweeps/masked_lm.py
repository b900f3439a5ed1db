"""How well does a small encoder learn to fill in masked words, at which budget? (arXiv:1810.04805)

One encoder per budget, with a decay of the learning rate (wsd) and without it (constant); the budgets of one seed share
a trunk. Expected: it ends below the loss of a model that knows the shares of words and looks at no context, the decay
lowers the loss, and most of that fall comes in the decay (as in arXiv:2410.05192). Presets: the peak (peaks), the
length of the decay (fractions), and one larger encoder for other studies (pretrain), which `python -m sweeps.store
export` writes as a folder for Hugging Face's transformers.
Cost: minutes on two CPU cores at scale=laptop, preset=pretrain more (the page of the study says how much). It wants the
corpus and an encoding first: python -m trainables.common.data english, then python -m
trainables.common.data.wordpiece english. scale=gpu is not measured.
"""

from analysis.masked_lm_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import masked_lm

QUESTION = Question(
    "masked_lm", masked_lm.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING)
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
