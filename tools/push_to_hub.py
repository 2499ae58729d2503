"""Upload a trained run to the Hugging Face hub for transformers, or write it to a folder."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from common.errors import exit_on_error
from common.training.trained_run import load_run
from common.utils.paths import display_path, get_assets_dir

EXAMPLES = """examples:
  python tools/push_to_hub.py --name exp_001 --repo OWNER/NAME --dry-run exported
  python tools/push_to_hub.py --name exp_001 --repo OWNER/NAME --private

Uploads the weights as safetensors, config.json, the tokenizer, and a model card with the
metrics, the configuration, the seed and the commit; nothing that names your machine or its folders.
Inspect it first with --dry-run, which uploads nothing. Supports only a Decoder that is a gpt2, llama,
qwen2 or qwen3. HF_TOKEN needs write access; HF_ENDPOINT or --endpoint sets a mirror.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--name", required=True, metavar="EXPERIMENT", help="the run")
    add("--repo", required=True, metavar="OWNER/NAME", help="target repository; created if missing")
    add("--checkpoint", default="best", help="best (default), last, or a step such as 500")
    add("--private", action="store_true", help="require a private repository")
    add("--dry-run", type=Path, metavar="FOLDER", help="write the files to a new folder instead")
    add("--endpoint", metavar="URL", help="address of a mirror of the hub")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    from apps.export.hf_upload import check_repo_id, check_token, upload_model

    check_repo_id(arguments.repo)
    if arguments.dry_run is not None:
        folder = export(arguments, arguments.dry_run)
        print(f"nothing was uploaded; the files are in {display_path(folder)}:")
        for path in sorted(folder.iterdir()):
            print(f"  {path.name}  {path.stat().st_size:,} bytes")
        return
    check_token()  # before the work
    get_assets_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export_", dir=get_assets_dir()) as temporary:
        folder = export(arguments, Path(temporary) / "model")
        address = upload_model(
            folder,
            arguments.repo,
            private=arguments.private,
            message=f"Upload {arguments.name}",
            endpoint=arguments.endpoint,
        )
    print(f"{arguments.name} is at {address}")


def export(arguments: argparse.Namespace, folder: Path) -> Path:
    run = load_run(arguments.name, arguments.checkpoint)
    from apps.export.hub import export_to_hub_format

    return export_to_hub_format(run, folder, arguments.repo)


if __name__ == "__main__":
    with exit_on_error():
        main()
