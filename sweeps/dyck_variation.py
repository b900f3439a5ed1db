"""Do nets that read bounded brackets equally well attend alike? (arXiv:2312.01429)

Forty seeds of a one-block Transformer whose inputs are the classes (token, depth) of brackets, as one program; each
stores the attention of the same probe rows. Expected from the paper: all close brackets right, and their attention
differs from seed to seed; the less balanced a net's scores are, the worse it does on longer rows; penalising what a
prefix changes (preset=regulariser, beside its control on equally long rows) makes both better. Other questions are
presets: first blocks that are trained (learned), a random balanced query-key map that is frozen (construction), nets
that are masks over one random net (pruning), Optuna over rates, decay, contrast and the data (tune).
Cost: minutes on two CPU cores at scale=laptop; gpu and paper not measured.
"""

from analysis.dyck_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import dyck

QUESTION = Question(
    "dyck_variation", dyck.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING)
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
