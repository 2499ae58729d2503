"""Experiments, manifests, paths and other things every script needs; loaded when first used."""

import lazy_loader

# As in __init__.pyi, which takes 5 ms to read: every list of experiments would wait for that.
__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "experiment_storage.exports": ["export_experiments"],
        "experiment_storage.importers": ["import_experiments"],
        "experiment_storage.reports": [
            "best_experiments",
            "compare_experiments",
            "list_experiments",
        ],
        "experiment_storage.run": ["Run", "start_experiment"],
        "experiment_storage.sql": ["query_experiments"],
        "experiment_storage.store": ["save_experiment"],
        "logging": ["get_logger"],
        "seeding": ["seed_everything"],
    },
)
