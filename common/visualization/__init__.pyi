from .evaluation import plot_evaluation as plot_evaluation
from .training_curves import plot_training_curves as plot_training_curves
