"""Judge a trained run on its whole validation text."""

from common.cli import evaluate_main
from projects.finetune.train import Config, build_model

if __name__ == "__main__":
    evaluate_main(Config, build_model, __file__)
