"""Which neurons of a frozen encoder carry a task, and does the task suffer more without them? (arXiv:2211.07349)

Prompts are trained, the predictivity of every neuron is counted on texts kept apart, and the most predictive ones are
perturbed beside random and matched controls. Expected: they tell the class of new texts, perturbing them costs more
than the controls, they differ from task to task, matter under BitFit and adapters too, and come from pre-training.
Presets: perturb, controls, specificity, bitfit, origin, prune, undertrained, readouts, decide (other tasks), tune.
Needs: python -m trainables.common.data minilm, and sentences. Cost: minutes on two CPU cores at scale=laptop.
"""

from analysis.skill_neurons_reading import READING
from sweeps.engine.launch import Question, main
from sweeps.engine.report import show_reading
from trainables import skill_neurons

QUESTION = Question(
    "skill_neurons", skill_neurons.STUDY, about=__doc__ or "", claims=READING.claims, show=show_reading(READING)
)

if __name__ == "__main__":
    raise SystemExit(main(QUESTION))
