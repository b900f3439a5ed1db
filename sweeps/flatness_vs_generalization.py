"""Do networks in flat minima generalise, and if so because they are flat? (arXiv:2307.11007)

Two-layer networks learn the product of two signs from 100 points: without and with a bias, under SGD, 1-SAM, label
noise, and gradient descent with weight decay. Expected from the paper: without a bias the flattest networks generalise
and 1-SAM finds them; with a bias 1-SAM reaches the least trace and yet generalises worse than the far sharper network
of weight decay; with a layer norm (preset=layer_norm) flat networks may memorise, but 1-SAM finds ones that do not.
Cost: minutes on two CPU cores at scale=laptop, all seeds of an algorithm in one program; gpu and paper not measured.
"""

from analysis.flatness_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import flatness

QUESTION = Question(
    "flatness_vs_generalization",
    flatness.STUDY,
    about=__doc__ or "",
    claims=READING.claims,
    show=show_reading(READING),
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
