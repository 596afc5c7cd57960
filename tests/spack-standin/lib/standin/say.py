"""What the stand-in prints, in the forms of Spack's console, and the one error type that ends it.

slurm-factory reads this output line by line, so every form here is one that real Spack was seen to print; the contract
test compares them.
"""

import sys


class SpackError(Exception):
    """Something that ends the command: `==> Error: ...` and exit code 1."""


def line(text=""):
    print(text, flush=True)


def message(text):
    line(f"==> {text}")


def error(text):
    print(f"==> Error: {text}", file=sys.stderr, flush=True)


def warning(text):
    print(f"==> Warning: {text}", file=sys.stderr, flush=True)
