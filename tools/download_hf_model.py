"""Download a model, or one file of it, from the Hugging Face hub into assets/models."""

from __future__ import annotations

import argparse

from common.data.hf_utils import download_model
from common.errors import exit_on_error
from common.utils.paths import display_path

EXAMPLES = """examples:
  python tools/download_hf_model.py --repo-id openai-community/gpt2 --include '*.safetensors' '*.json'
  python tools/download_hf_model.py --repo-id openai-community/gpt2 --filename tokenizer.json
  python tools/download_hf_model.py --repo-id EleutherAI/pythia-70m-deduped --revision step3000

Without --include or --filename it downloads all files, often the same weights in several formats.
After an interruption run the same command again: complete files are kept. HF_ENDPOINT or --endpoint
sets a mirror; HF_TOKEN gives access to gated and private repositories. See HUGGINGFACE_GUIDE.md.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repo-id", required=True, metavar="OWNER/NAME", help="model on the hub")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--filename", help="download only this file")
    what.add_argument("--include", nargs="+", metavar="PATTERN", help="download only these files")
    parser.add_argument("--revision", help="branch, tag or commit (default: main)")
    parser.add_argument("--endpoint", metavar="URL", help="address of a mirror of the hub")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    path = download_model(
        repo_id=arguments.repo_id,
        filename=arguments.filename,
        revision=arguments.revision,
        endpoint=arguments.endpoint,
        allow_patterns=arguments.include,
    )
    print(f"{arguments.repo_id} is in {display_path(path)}")
    if arguments.filename is None:
        print(f'open it in Python: transformers.AutoModelForCausalLM.from_pretrained("{path}")')


if __name__ == "__main__":
    with exit_on_error():
        main()
