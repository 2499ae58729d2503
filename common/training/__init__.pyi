from .callbacks.base import Callback as Callback
from .config import ExperimentConfig as ExperimentConfig
from .config import TrainingConfig as TrainingConfig
from .evaluator import Evaluator as Evaluator
from .evaluator import compute_perplexity as compute_perplexity
from .trainer import Trainer as Trainer
