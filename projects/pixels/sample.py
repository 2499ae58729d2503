"""Draw images with a trained run into one PNG: of all classes or one, or completions of test images."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from common.cli import run_name, run_parser
from common.errors import UsageError, did_you_mean, exit_on_error
from common.experiments.run_folders import folder_of
from common.training.trained_run import TrainedRun, load_run
from common.utils.arguments import positive_int, seed
from common.utils.paths import display_path

if TYPE_CHECKING:
    import torch

_COMMAND = "python projects/pixels/sample.py"
_COLUMNS = 10


def main() -> None:
    parser = run_parser(
        _COMMAND,
        "Draw images with a trained run, pixel by pixel.",
        f"""examples:
  {_COMMAND} pixels_001
  {_COMMAND} pixels_001 --label 3 --num-images 30 --temperature 0.9 --output threes.png
  {_COMMAND} pixels_001 --complete 0.5 --num-images 20""",
    )
    parser.add_argument("--num-images", type=positive_int, default=100, metavar="N")
    parser.add_argument("--label", metavar="CLASS", help="of every image (default: all in turn)")
    parser.add_argument(
        "--complete",
        type=float,
        metavar="FRACTION",
        help="keep this upper part of test images, whole rows of 10, and draw the rest below each row",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="(default 1)")
    parser.add_argument("--seed", type=seed, default=0, help="sampling seed (default 0)")
    parser.add_argument("--output", type=Path, metavar="PNG", help="(default: in the run's folder)")
    with exit_on_error():
        sample(parser.parse_args())


def sample(arguments: argparse.Namespace) -> None:
    """Draw with the arguments of the command line. Raises ResearchError."""
    kept = arguments.complete
    if kept is not None and not 0 < kept < 1:
        raise UsageError(f"--complete must be between 0 and 1, got {kept}")
    if kept is not None and arguments.label is not None:
        raise UsageError("--complete draws test images of all classes: leave out --label")
    if not 0 <= arguments.temperature < math.inf:
        raise UsageError(f"--temperature must be a number from 0 up, got {arguments.temperature}")
    run = load_run(run_name(arguments), arguments.checkpoint)
    from projects.pixels.drawing import save_grid

    pictures, columns = _pictures(run, arguments)
    output = arguments.output or folder_of(run.name) / "samples.png"
    save_grid(pictures, columns, output)
    print(f"picture     {display_path(output)}")


def _pictures(run: TrainedRun, arguments: argparse.Namespace) -> tuple[torch.Tensor, int]:
    """(images (n, channels, height, width), columns), by class or by test image."""
    import torch

    from common.data.image_batches import image_batch
    from common.data.image_sources import open_images
    from projects.pixels.drawing import draw

    images = open_images(run.config.data)
    classes, count = images.classes, arguments.num_images
    labels = torch.arange(count) % len(classes)
    begun = None
    if arguments.label is not None:
        if not run.config.by_class:
            raise UsageError(f"'{run.name}' knows no classes", "train with by_class=true")
        if arguments.label not in classes:
            hint = did_you_mean(arguments.label, [*classes])
            raise UsageError(f"there is no class '{arguments.label}'", hint)
        labels.fill_(classes.index(arguments.label))
    if arguments.complete is not None:
        count = max(_COLUMNS, count - count % _COLUMNS)
        batch = image_batch(images.val[:count])
        originals, labels = batch["inputs"], batch["labels"]
        rows = max(1, round(arguments.complete * images.shape[1]))
        begun = originals[:, :, :rows]
    if not run.config.by_class:
        labels = torch.zeros_like(labels)
    options = {"temperature": arguments.temperature, "seed": arguments.seed}
    drawn = draw(run.model, images.shape, labels, begun=begun, **options)
    if begun is not None:
        pairs = zip(originals.split(_COLUMNS), drawn.split(_COLUMNS), strict=True)
        return torch.cat([part for pair in pairs for part in pair]), _COLUMNS
    return drawn, _COLUMNS if arguments.label is not None else len(classes)


if __name__ == "__main__":
    main()
