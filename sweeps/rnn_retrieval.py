"""Can recurrent nets recall what stood in a text, and does one attention block give them the means? (arXiv:2402.18510)

By default associative recall, twice: of so many pairs that their values have more bits than a GRU's state, and, as a
control, of two. Learning rates are tuned for each model and problem, and the chosen ones meet fresh seeds. Expected:
a Transformer and a hybrid of as many parameters recall nearly all of both, the GRU the control alone.
Other questions are presets: growing texts (lengths), indices, counts and c-grams (index, counting, cgram), is a graph a
tree, with and without a written search or search calls (istree), and accuracy against the bits of the state (frontier).
Cost: minutes on two CPU cores at scale=laptop; scale=gpu and scale=paper are for one GPU and not measured.
"""

from analysis.rnn_retrieval_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import rnn_retrieval

QUESTION = Question(
    "rnn_retrieval", rnn_retrieval.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING)
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
