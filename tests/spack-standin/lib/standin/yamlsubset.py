"""Reads the YAML that slurm-factory writes for Spack.

The prepared root has no YAML library for Python, and this reads no more than serde-saphyr emits: block mappings and
sequences, plain and quoted scalars, literal and folded blocks, empty `[]` and `{}`. Everything else is an error with
its line, never a guess: a file that real Spack would read otherwise must not pass here.
"""

import json
import re

_KEY = re.compile(
    r"""(?P<key>
        "(?:\\.|[^"\\])*"
      | '(?:''|[^'])*'
      | [^\s"'\[\]{}\#&*!|>%@`,-][^\#]*?
      | -[^\s\#][^\#]*?
    ):(?:\s+(?P<rest>\S.*)|\s*)$""",
    re.VERBOSE,
)
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(r"[-+]?[0-9]+\.[0-9]*([eE][-+]?[0-9]+)?$")
_CONSTANTS = {"null": None, "~": None, "": None, "true": True, "false": False}
# Words that YAML 1.1 takes for booleans and YAML 1.2 does not: an emitter that knows both quotes them.
_AMBIGUOUS = {"yes", "no", "on", "off", "y", "n"}


class YamlError(Exception):
    """Text that is not in the subset."""


def load(text, name):
    """Parses a document; `name` is for errors."""
    reader = _Reader(text, name)
    value = reader.node(0)
    reader.end()
    return value


class _Reader:
    def __init__(self, text, name):
        self.lines = text.split("\n")
        self.name = name
        self.at = 0

    def fail(self, why):
        raise YamlError(f"{self.name}:{self.at + 1}: {why}")

    def peek(self):
        """Indentation and content of the next line that holds something, or None."""
        while self.at < len(self.lines):
            text = self.lines[self.at]
            content = text.lstrip(" ")
            if content.strip() and not content.startswith("#"):
                if content.startswith("\t"):
                    self.fail("a tab as indentation")
                if self.at == 0 and content.startswith(("---", "%")):
                    self.fail("document markers are not read")
                return len(text) - len(content), content.rstrip()
            self.at += 1
        return None

    def end(self):
        if self.peek() is not None:
            self.fail("this line belongs to nothing before it")

    def node(self, least):
        """The mapping or sequence that begins at the next line, which is indented by `least` or more."""
        found = self.peek()
        if found is None or found[0] < least:
            return None
        indent, content = found
        if _is_item(content):
            return self.sequence(indent)
        if _KEY.match(content):
            return self.mapping(indent)
        return self.fail("neither a mapping nor a sequence")

    def sequence(self, indent):
        items = []
        while (found := self.peek()) is not None and found[0] == indent and _is_item(found[1]):
            rest = found[1][1:].lstrip()
            if not rest:
                self.at += 1
                items.append(self.node(indent + 1))
            elif _is_item(rest) or (_KEY.match(rest) and rest not in ("[]", "{}")):
                # A collection that begins on the item's own line: what follows "- " is read as a line of its own.
                inner = indent + len(found[1]) - len(rest)
                self.lines[self.at] = " " * inner + rest
                items.append(self.node(inner))
            else:
                items.append(self.value(rest, indent))
        return items

    def mapping(self, indent):
        result = {}
        while (found := self.peek()) is not None and found[0] == indent:
            match = _KEY.match(found[1])
            if not match:
                self.fail("a key and a colon were expected")
            key = self.scalar(match["key"])
            if key in result:
                self.fail(f"key {key!r} stands twice")
            rest = match["rest"]
            if rest:
                result[key] = self.value(rest, indent)
                continue
            self.at += 1
            after = self.peek()
            if after is not None and after[0] == indent and _is_item(after[1]):
                result[key] = self.sequence(indent)
            else:
                result[key] = self.node(indent + 1)
        return result

    def value(self, text, indent):
        """A scalar that begins on this line; `indent` is that of its key or item."""
        if text[0] in "|>":
            return self.block(text, indent)
        value = self.scalar(text)
        self.at += 1
        after = self.peek()
        if after is not None and after[0] > indent:
            self.fail("a scalar over several lines is only read as a block")
        return value

    def scalar(self, text):
        if text in ("[]", "{}"):
            return [] if text == "[]" else {}
        if text[0] == '"':
            try:
                return json.loads(text)
            except ValueError:
                return self.fail("a double-quoted scalar with escapes that JSON does not have")
        if text[0] == "'":
            if not re.fullmatch(r"'(?:''|[^'])*'", text):
                self.fail("a single-quoted scalar that does not end on its line")
            return text[1:-1].replace("''", "'")
        if text[0] in "[]{}&*!|>%@`," or " #" in text or ": " in text or text.endswith(":"):
            self.fail(f"not in the subset that is read: {text}")
        if text.lower() in _AMBIGUOUS:
            self.fail(f"an unquoted `{text}` means different things to different readers")
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INT.match(text):
            return int(text)
        return float(text) if _FLOAT.match(text) else text

    def block(self, header, indent):
        if header not in ("|", "|-", ">", ">-"):
            self.fail(f"a block scalar of another kind: {header}")
        self.at += 1
        taken = []
        inner = None
        while self.at < len(self.lines):
            text = self.lines[self.at]
            depth = len(text) - len(text.lstrip(" "))
            if text.strip():
                if depth <= indent:
                    break
                if inner is None:
                    inner = depth
                if depth < inner:
                    self.fail("a block scalar whose first line is indented more than a later one")
                if header[0] == ">" and depth > inner:
                    self.fail("a folded line that is indented further")
            taken.append(text[inner or 0 :])
            self.at += 1
        while taken and not taken[-1].strip():
            taken.pop()
        if header[0] == ">" and not all(taken):
            self.fail("an empty line in a folded block")
        joined = ("\n" if header[0] == "|" else " ").join(taken)
        return joined if header.endswith("-") else joined + "\n"


def _is_item(content):
    return content == "-" or content.startswith("- ")
