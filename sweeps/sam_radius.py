"""Which sharpness does SAM lower, and how does its pace depend on the radius? (arXiv:2211.05729)

Full-batch SAM and 1-SAM from the same interpolating states over a grid of radii, each for the same time in units of
1 / (learning rate * radius^2). Expected: full-batch SAM minimizes the largest eigenvalue of the Hessian, 1-SAM its
trace; the pace per step grows with the square of the radius. Presets: the approximations taken singly (approximations),
the limit on a quadratic (quadratic), a small net (small_net) and m-SAM between the two (m_sweep).
Cost: minutes on two CPU cores at scale=laptop; the smallest radius takes most of it. scale=gpu is not measured.
"""

from analysis.sam_bias_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import sam_bias

QUESTION = Question(
    "sam_radius", sam_bias.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING)
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
