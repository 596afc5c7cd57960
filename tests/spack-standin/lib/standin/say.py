"""What the stand-in prints, in the forms of Spack's console, and the one error type that ends it.

slurm-factory reads this output line by line, so every form here is one that real Spack was seen to print; the contract
test compares them.
"""

import re
import sys


class SpackError(Exception):
    """Something that ends the command: `==> Error: ...` and exit code 1."""


_PADDED = re.compile(r"^(.*?)(?:/__spack_path_placeholder__)+(?:/[_a-z]*)?(?=/)")


def short(path):
    """The path as the console shows it: what pads an install tree becomes one word."""
    return _PADDED.sub(lambda found: f"{found[1]}/[padded-to-{len(found[0])}-chars]", path)


def line(text=""):
    print(text, flush=True)


def message(text):
    line(f"==> {text}")


def error(text):
    print(f"==> Error: {text}", file=sys.stderr, flush=True)


def warning(text):
    print(f"==> Warning: {text}", file=sys.stderr, flush=True)
