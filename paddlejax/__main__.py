"""The command line: `python -m paddlejax inspect FILE` and `python -m paddlejax convert FILE OUT`."""

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from . import __version__
from .checkpoint import convert, inspect
from .checkpoint.convert import FORMATS, known
from .checkpoint.folders.kinds import is_one
from .checkpoint.inspect import Report

EXAMPLES = """examples:
  python -m paddlejax inspect model.pdopt
  python -m paddlejax inspect --json model.pdparams
  python -m paddlejax convert model.pdopt model.safetensors
  python -m paddlejax convert --force model.npz model.pdopt
  python -m paddlejax convert run/checkpoint-1000 model.pdparams

exit status: 0 done, 1 a file is bad or missing, 2 the command is"""
COLUMNS = ("name", "slot", "shape", "dtype", "norm", "NaNs")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    about = "Look into and convert the checkpoints of PaddlePaddle and paddlejax."
    main = argparse.ArgumentParser(
        "python -m paddlejax",
        description=about,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    main.add_argument("--version", action="version", version=f"paddlejax {__version__}")
    commands = main.add_subparsers(dest="command", required=True, metavar="inspect|convert")
    endings = ", ".join(FORMATS)
    one = commands.add_parser("inspect", help="list the arrays of a file with shapes, norms and NaN counts")
    folders = "a checkpoint's folder, index.json or .metadata"
    one.add_argument("file", help=f"{endings}; another ending is taken for Paddle's; {folders}")
    one.add_argument("--json", action="store_true", help="print one JSON object")
    two = commands.add_parser("convert", help="write a checkpoint in another format")
    two.add_argument(
        "file", type=lambda path: path if is_one(path) else _known(path), help=f"{endings}; {folders}"
    )
    two.add_argument("out", type=_known, metavar="OUT", help=f"{endings}; the ending decides the format")
    two.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return main


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    given = parser().parse_args(arguments)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        if given.command == "convert":
            convert(given.file, given.out, given.force)
        elif given.json:
            print(as_json(inspect(given.file)))
        else:
            show(inspect(given.file))
        sys.stdout.flush()
    except BrokenPipeError:  # as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, TypeError, OSError, ImportError) as e:
        print(f"paddlejax {given.command}: {printable(e)}", file=sys.stderr)
        return 1
    return 0


def _known(path: str) -> str:
    try:
        known(path)
    except ValueError as e:
        raise argparse.ArgumentTypeError(printable(e)) from None
    return path


def printable(x: Any) -> str:
    """Text from a file on one line, unable to steer a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(x))


def cells(report: Report) -> list[tuple[str, ...]]:
    """The rows of the table, as text; "-" for what is not known of a compressed array."""
    return [
        (printable(r.name), r.slot, str(r.shape), r.dtype, *(_number(x) for x in (r.norm, r.nans)))
        for r in report.rows
    ]


def _number(x: float | None) -> str:
    """Return a norm or a count as text."""
    return "-" if x is None else f"{x:.6g}" if isinstance(x, float) else str(x)


def below(report: Report) -> list[str]:
    """What stands under the table."""
    others = [
        f"{printable(k)}: {printable(repr(v) if isinstance(v, str) else v)}" for k, v in report.others.items()
    ]
    count = sum(math.prod(row.shape) for row in report.rows)
    sizes = f"{len(report.rows)} arrays, {count:,} numbers, {report.size:,} bytes"
    return [*others, f"{printable(report.file)}: {sizes}, layout: {report.layout}"]


def show(report: Report) -> None:
    """Print the table, in colours where rich is installed and somebody is looking."""
    if sys.stdout.isatty() and find_spec("rich"):
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*COLUMNS)
        for row in cells(report):
            table.add_row(*map(Text, row), style="bold red" if row[-1] not in ("0", "-") else None)
        Console().print(table, *map(Text, below(report)), sep="\n")
        return
    rows = [COLUMNS, *cells(report)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("", *below(report), sep="\n")


def as_json(report: Report) -> str:
    """The report as a JSON object; numbers that JSON does not have are text, such as "nan"."""
    rows = [row._asdict() for row in report.rows]
    return json.dumps(_finite(report._asdict() | {"rows": rows}), indent=1)


def _finite(x: Any) -> Any:
    if isinstance(x, dict):
        return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return [_finite(v) for v in x]
    return str(x) if isinstance(x, complex) or isinstance(x, float) and not math.isfinite(x) else x


if __name__ == "__main__":
    sys.exit(main())
