from common.experiments import Run as Run
from common.experiments import query_experiments as query_experiments
from common.experiments import save_experiment as save_experiment
from common.experiments import start_experiment as start_experiment

from .logging import get_logger as get_logger
from .seeding import seed_everything as seed_everything
