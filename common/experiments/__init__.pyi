from .run import Run as Run
from .run import save_experiment as save_experiment
from .run import start_experiment as start_experiment
from .sql import query_experiments as query_experiments
