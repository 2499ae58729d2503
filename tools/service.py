"""Start the model trainer: training over HTTP that survives every crash.

examples:
  python tools/service.py                  API, one worker and, without REDIS_URL, Redis
  python tools/service.py --new-key        print another key, and exit
  python tools/service.py --api            the API alone
  python tools/service.py --worker 2       two workers alone, for REDIS_URL
"""

from __future__ import annotations

import argparse

from common.errors import exit_on_error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--api", action="store_true", help="start the API")
    parser.add_argument("--worker", type=int, metavar="N", help="start N workers")
    parser.add_argument(
        "--port", type=int, help="of the API (default: the first free one from 8430)"
    )
    parser.add_argument(
        "--new-key", action="store_true", help="print a new key of the API, and exit"
    )
    arguments = parser.parse_args()
    with exit_on_error():
        from apps.model_trainer.keys import new_key
        from apps.model_trainer.service import run

        if arguments.new_key:
            print(new_key())
            return
        all_parts = not arguments.api and arguments.worker is None
        workers = 1 if all_parts else arguments.worker or 0
        run(api=all_parts or arguments.api, workers=workers, port=arguments.port)


if __name__ == "__main__":
    main()
