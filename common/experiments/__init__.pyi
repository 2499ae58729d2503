from .exports import export_experiments as export_experiments
from .reports import best_experiments as best_experiments
from .reports import compare_experiments as compare_experiments
from .reports import list_experiments as list_experiments
from .run import Run as Run
from .run import start_experiment as start_experiment
from .sql import query_experiments as query_experiments
from .store import save_experiment as save_experiment
