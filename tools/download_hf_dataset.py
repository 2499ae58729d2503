"""Download a dataset from the Hugging Face hub into assets/datasets."""

from __future__ import annotations

import argparse

from common.data.hf_utils import download_dataset, link_dataset
from common.errors import exit_on_error
from common.utils.paths import display_path, get_datasets_dir

EXAMPLES = """examples:
  python tools/download_hf_dataset.py --name roneneldan/TinyStories
  python tools/download_hf_dataset.py --name Salesforce/wikitext --config wikitext-2-raw-v1
  python tools/download_hf_dataset.py --name roneneldan/TinyStories --split validation \\
      --output-dir assets/datasets/TinyStories-validation
  python tools/download_hf_dataset.py --name roneneldan/TinyStories --link projects/custom_transformer

A finished download is reused without the network. HF_ENDPOINT or --endpoint sets a mirror; HF_TOKEN
gives access to gated and private repositories. See HUGGINGFACE_GUIDE.md.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True, metavar="OWNER/NAME", help="dataset on the hub")
    parser.add_argument("--config", help="configuration, if the dataset has several")
    parser.add_argument("--split", help="only this: train, validation, train[:1%%], train+test ...")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument("--endpoint", metavar="URL", help="address of a mirror of the hub")
    parser.add_argument(
        "--output-dir", metavar="FOLDER", help="instead of assets/datasets/NAME[-CONFIG]"
    )
    parser.add_argument(
        "--force", action="store_true", help="download again, replace the folder (token files too)"
    )
    parser.add_argument("--link", metavar="PROJECT", help="link PROJECT/data to the dataset")
    arguments = parser.parse_args()
    if arguments.link and arguments.output_dir:
        parser.error("--link needs a dataset in assets/datasets: leave out --output-dir")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    folder = download_dataset(
        name=arguments.name,
        config=arguments.config,
        split=arguments.split,
        revision=arguments.revision,
        endpoint=arguments.endpoint,
        output_dir=arguments.output_dir,
        force=arguments.force,
    )
    print(f"{arguments.name} is in {display_path(folder)}")
    if arguments.link:
        print(f"{display_path(link_dataset(arguments.link, folder.name))} points to it")
    train = "python projects/custom_transformer/train.py --config configs/tinystories.yaml"
    if folder.parent == get_datasets_dir():
        print(f"train on it: {train} data.dataset={folder.name}")
    else:
        print(f'open it in Python: datasets.load_from_disk("{folder}")')


if __name__ == "__main__":
    with exit_on_error():
        main()
