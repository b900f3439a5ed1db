"""How many samples does a Transformer need to learn a parity, with and without a chain of thought? (arXiv:2410.05459)

The learning rate is tuned for each number of secret bits in either layout, by the median over tuning seeds; the chosen
one then meets fresh seeds. A run that is never right on every held-out row is censored and enters as that. Expected:
equal for one secret bit; with a chain of thought nearly flat in the number of secret bits, without one exponential.
Other questions are presets: the input's length (against_n), layers_and_heads, along_training, sparsity, stability,
multi_pass, rates; at scale=paper, long_secrets, forty_bits, multi_pass_chain and twelve_of_twenty.
Cost: minutes on two CPU cores at scale=laptop; scale=gpu and scale=paper are for one GPU and not measured.
"""

from analysis.cot_parity_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import cot_parity

QUESTION = Question(
    "parity_samples", cot_parity.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING)
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
