"""How many samples and device-seconds does a network need to find the secret of a noisy parity? (arXiv:2303.07987)

Two-layer nets on fresh samples, with the learning rate and the width tuned for each dimension and noise rate; the
chosen ones then meet fresh secrets. Expected: every secret of 10 to 14 bits is found, from far more samples than
maximum likelihood takes by one Walsh-Hadamard transform, and the gap neither closes with the dimension nor the noise.
Other questions are presets: pools of samples (moderate, restricted), sparse secrets, reductions in front of the net.
Cost: minutes on two CPU cores at scale=laptop; scale=gpu and preset=n26 are for one GPU and not measured. Device
seconds need nets that train alone: resources.pack=1.
"""

from analysis.lpn_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import lpn

QUESTION = Question("lpn_noise", lpn.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING))

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
