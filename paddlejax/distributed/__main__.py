"""`launch` from a shell: python -m paddlejax.distributed --processes 2 --devices 4 script.py args"""

import argparse
import sys

from .processes import launch


def main() -> int:
    """Run the command line; return the exit status of the processes."""
    parser = argparse.ArgumentParser(
        "python -m paddlejax.distributed",
        description="Run a Python script as several processes on this machine; the status is theirs.",
    )
    parser.add_argument("--processes", type=int, required=True, help="how many, 1 or more")
    parser.add_argument("--devices", type=int, default=1, help="simulated CPU devices of each, by default 1")
    parser.add_argument("--timeout", type=float, help="seconds after which all are stopped, by default never")
    parser.add_argument("--max-restarts", type=int, default=0, help="after failures, by default none")
    parser.add_argument("--log-dir", help="a folder for what each process writes, by default none")
    parser.add_argument("script", help="a Python script that calls paddlejax.distributed.initialize()")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="its arguments")
    given = parser.parse_args()
    try:
        return launch(
            given.script,
            given.processes,
            given.args,
            given.devices,
            timeout=given.timeout,
            max_restarts=given.max_restarts,
            log_dir=given.log_dir,
        )
    except (ValueError, FileNotFoundError) as e:
        parser.error(str(e))


if __name__ == "__main__":
    sys.exit(main())
