"""Let a trained run write."""

from common.cli import sample_main
from projects.finetune.train import Config, build_model

if __name__ == "__main__":
    sample_main(Config, build_model, __file__)
