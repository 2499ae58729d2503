"""Every experiment in a browser: curves, comparisons, samples, SQL. On this machine alone."""

from __future__ import annotations

import argparse

from apps.dashboard.launch import DEFAULT_PORT, serve
from common.errors import exit_on_error

EXAMPLES = """examples:
  python tools/dashboard.py
  python tools/dashboard.py --port 9000 --no-open
  ssh -L 8420:127.0.0.1:8420 HOST      then look at http://127.0.0.1:8420 of the machine HOST"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--port", type=int, help=f"default: {DEFAULT_PORT}, or the next that is free"
    )
    parser.add_argument(
        "--open",
        action=argparse.BooleanOptionalAction,
        help="open the browser (default: where there is a screen)",
    )
    arguments = parser.parse_args()
    if arguments.port is not None and not 0 <= arguments.port < 2**16:
        parser.error(f"--port must be from 0 to 65535, got {arguments.port}")
    with exit_on_error():
        serve(arguments.port, arguments.open)


if __name__ == "__main__":
    main()
