"""Show all experiments in a browser: curves, comparisons, samples, SQL. Serves only this machine."""

from __future__ import annotations

import argparse

from apps.dashboard.launch import DEFAULT_PORT, serve
from common.errors import exit_on_error

EXAMPLES = """examples:
  python tools/dashboard.py
  python tools/dashboard.py --port 9000 --no-open
  ssh -L 8420:127.0.0.1:8420 HOST      then open http://127.0.0.1:8420 for the machine HOST"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--port", type=int, help=f"default: the first free port from {DEFAULT_PORT}"
    )
    parser.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        help="open the browser (default: if there is a display)",
    )
    arguments = parser.parse_args()
    if arguments.port is not None and not 0 <= arguments.port < 2**16:
        parser.error(f"--port must be from 0 to 65535, got {arguments.port}")
    with exit_on_error():
        serve(arguments.port, arguments.open)


if __name__ == "__main__":
    main()
