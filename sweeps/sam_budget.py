"""Does SAM pay for its second gradient on a small residual net, and what does it do to sharpness? (arXiv:2010.01412)

SGD (radius 0) and SAM of several radii, learning rate and weight decay tuned for each, at two budgets: SGD at the
second has taken as many gradients as SAM at the first. Expected: SAM's minima are flatter at equal steps, in the top
eigenvalue and in the trace of the Hessian; whether they are better at equal gradients is what the sweep is for.
Presets: SAM from the middle of the plain trunk on (late), m-SAM (groups), several radii at one rate from one trunk
against learning rate * radius^2 * steps (pace).
Needs Fashion-MNIST from scale=laptop on: python -m trainables.common.data fashion_mnist
Cost: minutes on two CPU cores at scale=laptop; scale=gpu and scale=paper are not measured.
"""

from analysis.sam_net_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import sam_net

QUESTION = Question("sam_budget", sam_net.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING))

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
