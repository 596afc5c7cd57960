"""Versions and constraints, as far as specs in slurm-factory's files use them.

A constraint is `name@versions+variant~variant key=value %gcc@=version`. What is not in this grammar (architectures, flags,
dependencies) is an error: the stand-in must not take a request for something it did not understand.
"""

import re
from dataclasses import dataclass, field

from .say import SpackError

_TOKENS = re.compile(
    r"""\s*(?:
        @(?P<versions>=?[A-Za-z0-9_.:,=-]+)
      | %gcc@=(?P<compiler>[0-9.]+)
      | (?P<sign>[+~-])(?P<flag>[A-Za-z0-9_][A-Za-z0-9_-]*)
      | (?P<key>[A-Za-z0-9_][A-Za-z0-9_-]*):?=(?:'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<bare>[^\s'"]+))
      )""",
    re.VERBOSE,
)
_NAME = re.compile(r"\s*(?P<name>[a-z0-9][a-z0-9_-]*?)(?=[@+~\s]|$)")
FLAGS = ("cflags", "cppflags", "cxxflags", "fflags", "ldflags", "ldlibs")


def key(version):
    """A sort key: numbers before words of the same place, as Spack orders them."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.findall(r"\d+|[A-Za-z]+", version)]


def _within(version, choice):
    if choice.startswith("="):
        return version == choice[1:]
    low, colon, high = choice.partition(":")
    own = key(version)
    if not colon:
        wanted = key(low)
        return own[: len(wanted)] == wanted
    if low and own < key(low):
        return False
    # The upper end takes in everything that begins with it: 1.3.1 is in `:1.3`.
    return not high or own[: len(key(high))] <= key(high)


@dataclass
class Constraint:
    """What is asked of one package."""

    text: str
    name: str = ""
    versions: list = field(default_factory=list)
    variants: dict = field(default_factory=dict)
    compiler: str = ""

    def admits(self, version):
        return all(any(_within(version, choice) for choice in group.split(",")) for group in self.versions)


def parse(text):
    """Parses `slurm@=24-11-5-1 ~pmix sysconfdir=/etc/slurm`, with or without a name."""
    constraint = Constraint(text)
    at = 0
    if (name := _NAME.match(text)) and "=" not in text[: name.end() + 1].lstrip():
        constraint.name, at = name["name"], name.end()
    while text[at:].strip():
        token = _TOKENS.match(text, at)
        if not token:
            raise SpackError(f"the stand-in does not read this part of a spec: `{text[at:].strip()}` in `{text}`")
        at = token.end()
        if token["versions"]:
            constraint.versions.append(token["versions"])
        elif token["compiler"]:
            constraint.compiler = token["compiler"]
        elif token["flag"]:
            constraint.variants[token["flag"]] = token["sign"] == "+"
        else:
            value = next(v for v in (token["single"], token["double"], token["bare"]) if v is not None)
            constraint.variants[token["key"]] = value
    return constraint


def variants_text(parameters):
    """`+a~b key=value names:=x,y`, in Spack's order: switches first, then values by name."""
    shown = {name: value for name, value in sorted(parameters.items()) if name not in FLAGS}
    switches = "".join(("+" if on else "~") + name for name, on in shown.items() if isinstance(on, bool))
    values = ""
    for name, value in shown.items():
        if isinstance(value, bool):
            continue
        if name == "patches":
            value = [each[:7] for each in value]
        if isinstance(value, list):
            joined = ",".join(value)
            values += f" {name}:={joined}" if re.fullmatch(r"[\w.,/-]*", joined) else f" {name}:='{joined}'"
        else:
            values += f" {name}={value}"
    return switches + values
