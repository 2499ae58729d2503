from .experiment_storage.run import Run as Run
from .experiment_storage.run import start_experiment as start_experiment
from .experiment_storage.sql import query_experiments as query_experiments
from .experiment_storage.store import save_experiment as save_experiment
from .logging import get_logger as get_logger
from .seeding import seed_everything as seed_everything
