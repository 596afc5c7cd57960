#!/usr/bin/env python3
"""Compares what real Spack and the stand-in leave and print, after the same calls on the same environment.

    contract.py collect ENVIRONMENT STORE VIEW     inside the sandbox; facts as JSON on stdout
    contract.py compare REAL STANDIN               two folders with facts.json and the calls' output (*.log)

The stand-in is worth something only as far as slurm-factory cannot tell it from Spack: what the program reads must be
equal (hashes apart), and of the rest the names and the types. Where the two are meant to differ is listed here, each
with its reason; any other difference fails.
"""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(os.path.realpath(__file__)), "lib"))

from standin.solve import dag_hash  # noqa: E402  (the path above comes first)

HASH = re.compile(r"(?<![a-z0-9])[a-z2-7]{32}(?![a-z0-9])")

# What of a package's files is left out of the comparison, and why.
LEFT_OUT = {
    "compiler-wrapper": r"(?!libexec/spack/gcc/g(cc|\+\+)$)",  # Spack's serves every compiler; only GCC's names count
    "libgcrypt": r"share/|lib/libgcrypt\.a$",  # built without documentation and static archive, for time
    "libgpg-error": r"share/|bin/yat2m$",  # built without languages and documentation, for time
}
# Of `.spack`, the recipes' copies: they are those of the recipe repositories.
RECIPES = re.compile(r"\.spack/(?:[^/]+/)?repos/")

# Keys that a node of only one of the two may have, and why.
NODE_KEYS = {
    "libgcrypt": {"patches"},  # Spack patches assembler code that the stand-in does not build
    "gmake": {"patches"},  # an external's patches are what the recipe would apply
}


# --- facts, gathered inside the sandbox ---------------------------------------------------------------------


def tree(root):
    """Path below root -> kind, mode, link target, identity of the file on disk."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            kind = {stat.S_IFDIR: "folder", stat.S_IFLNK: "link", stat.S_IFREG: "file"}[stat.S_IFMT(about.st_mode)]
            found[os.path.relpath(path, root)] = {
                "kind": kind,
                "mode": oct(stat.S_IMODE(about.st_mode)),
                "target": os.readlink(path) if kind == "link" else None,
                "inode": [about.st_dev, about.st_ino],
            }
    return found


def dynamic(root, files):
    """ELF file -> what `readelf -d` says of libraries and search paths."""
    found = {}
    for name, about in files.items():
        path = os.path.join(root, name)
        if about["kind"] != "file":
            continue
        with open(path, "rb") as stream:
            if stream.read(4) != b"\x7fELF":
                continue
        shown = subprocess.run(["readelf", "-d", "-W", path], capture_output=True, text=True, check=True).stdout
        entries = re.findall(r"\((NEEDED|RPATH|RUNPATH|SONAME)\).*\[(.*)\]", shown)
        found[name] = [[kind, value.split(":") if kind.endswith("PATH") else value] for kind, value in entries]
    return found


def collect(environment, store, view):
    lock = json.loads(Path(environment, "spack.lock").read_text(encoding="utf-8"))
    packages = {}
    for hash, node in lock["concrete_specs"].items():
        if "external" in node:
            continue
        prefix = os.path.join(store, f"{node['name']}-{node['version']}-{hash}")
        files = tree(prefix)
        packages[node["name"]] = {
            "mode": oct(stat.S_IMODE(os.lstat(prefix).st_mode)),
            "files": files,
            "dynamic": dynamic(prefix, files),
            "spec": json.loads(Path(prefix, ".spack/spec.json").read_text(encoding="utf-8")),
        }
    return {
        "lock": lock,
        "packages": packages,
        "view": {"root": view, "target": os.readlink(view), "files": tree(os.path.realpath(view))},
    }


# --- comparison ---------------------------------------------------------------------------------------------


class Differences:
    def __init__(self):
        self.found = []
        self.compared = 0

    def equal(self, what, real, ours):
        self.compared += 1
        if real != ours:
            self.found.append(f"{what}\n    Spack:    {shown(real)}\n    stand-in: {shown(ours)}")

    def true(self, what, value):
        self.equal(what, True, bool(value))


def shown(value):
    text = json.dumps(value, sort_keys=True)
    return text if len(text) < 1500 else text[:1500] + " ..."


def shape(value):
    """The types in a value, the names of its keys kept."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in sorted(value.items())}
    if isinstance(value, list):
        return sorted({json.dumps(shape(each), sort_keys=True) for each in value})
    return type(value).__name__


def by_name(lock):
    return {node["name"]: node for node in lock["concrete_specs"].values()}


def compare_lock(out, real, ours):
    out.equal("lock: keys", sorted(real), sorted(ours))
    out.equal("lock: _meta", real["_meta"], ours["_meta"])
    out.equal("lock: spack", real["spack"], ours["spack"])
    out.equal("lock: form of roots", shape(real["roots"]), shape(ours["roots"]))
    out.equal(
        "lock: specs of roots", sorted(r["spec"] for r in real["roots"]), sorted(r["spec"] for r in ours["roots"])
    )
    for who, lock in (("Spack", real), ("stand-in", ours)):
        hashes = lock["concrete_specs"]
        out.true(f"lock: {who}: roots are nodes", all(root["hash"] in hashes for root in lock["roots"]))
        for hash, node in hashes.items():
            out.equal(f"lock: {who}: {node['name']}: key and hash", hash, node["hash"])
            out.equal(f"lock: {who}: {node['name']}: hash of its JSON", hash, dag_hash(node))
    theirs, mine = by_name(real), by_name(ours)
    out.equal("lock: packages", sorted(theirs), sorted(mine))
    for name in sorted(set(theirs) & set(mine)):
        compare_node(out, name, theirs[name], mine[name])


def compare_node(out, name, real, ours):
    allowed = NODE_KEYS.get(name, set())
    out.equal(f"{name}: keys, in order", [k for k in real if k not in allowed], [k for k in ours if k not in allowed])
    for key in ("name", "version", "namespace", "arch", "annotations", "external"):
        out.equal(f"{name}: {key}", real.get(key), ours.get(key))
    for key in set(real) & set(ours) - {"parameters"}:
        out.equal(f"{name}: form of {key}", shape(real[key]), shape(ours[key]))
    links = [{entry["name"]: entry["parameters"] for entry in node.get("dependencies", ())} for node in (real, ours)]
    out.equal(f"{name}: dependencies", *links)
    # An external's variants are the recipe's defaults, which the stand-in does not know.
    parameters = [{k: v for k, v in node["parameters"].items() if k not in allowed} for node in (real, ours)]
    if "external" in real:
        parameters = [{k: v for k, v in each.items() if k in ours["parameters"]} for each in parameters]
        for each in parameters:
            each.pop("build_system", None)
    out.equal(f"{name}: parameters", *parameters)


def packages_paths(name, files):
    """What is compared of a prefix: everything but what is left out by name."""
    left_out = re.compile(LEFT_OUT[name]) if name in LEFT_OUT else None
    found = {}
    for path, about in files.items():
        inner = path.startswith(".spack")
        if RECIPES.match(path) or (left_out and not inner and left_out.match(path)):
            continue
        if about["kind"] == "folder" and left_out and not inner:
            continue
        target = HASH.sub("HASH", about["target"]) if about["target"] else None
        if name == "compiler-wrapper" and not inner:
            target = target and os.path.basename(os.path.dirname(target))
        found[path] = [about["kind"], about["mode"], target]
    return found


def without_hash(value):
    return json.loads(HASH.sub("HASH", json.dumps(value)))


def compare_packages(out, real, ours):
    out.equal("store: prefixes", sorted(real), sorted(ours))
    for name in sorted(set(real) & set(ours)):
        theirs, mine = real[name], ours[name]
        out.equal(f"{name}: mode of the prefix", theirs["mode"], mine["mode"])
        out.equal(f"{name}: files", packages_paths(name, theirs["files"]), packages_paths(name, mine["files"]))
        left_out = re.compile(LEFT_OUT.get(name, "$."))
        elf = [sorted(path for path in each["dynamic"] if not left_out.match(path)) for each in (theirs, mine)]
        out.equal(f"{name}: ELF files", *elf)
        for path in sorted(set(theirs["dynamic"]) & set(mine["dynamic"])):
            entries = [without_hash(each["dynamic"][path]) for each in (theirs, mine)]
            out.equal(f"{name}: {path}: libraries and search path", *entries)
        specs = [each["spec"] for each in (theirs, mine)]
        out.equal(f"{name}: spec.json: keys", *(sorted(each) for each in specs))
        out.equal(f"{name}: spec.json: keys of spec", *(sorted(each["spec"]) for each in specs))
        out.equal(f"{name}: spec.json: _meta", *(each["spec"]["_meta"] for each in specs))
        out.equal(f"{name}: spec.json: first node", *(each["spec"]["nodes"][0]["name"] for each in specs))
        out.equal(f"{name}: spec.json: nodes", *(sorted(n["name"] for n in each["spec"]["nodes"]) for each in specs))
        allowed = NODE_KEYS.get(name, set())
        keys = [[key for key in each["spec"]["nodes"][0] if key not in allowed] for each in specs]
        out.equal(f"{name}: spec.json: keys of the first node", *keys)


def view_paths(facts):
    """What is compared of a view, and whether every file and link in it is one of the store's."""
    stored = {
        tuple(about["inode"]): name
        for name, package in facts["packages"].items()
        for about in package["files"].values()
        if about["kind"] != "folder"
    }
    found, strangers = {}, []
    for path, about in facts["view"]["files"].items():
        owner = stored.get(tuple(about["inode"]))
        if about["kind"] != "folder" and owner is None:
            strangers.append(path)
        inner = path.startswith(".spack")
        left_out = LEFT_OUT.get(owner)
        if RECIPES.match(path) or (left_out and not inner and re.match(left_out, path)):
            continue
        if about["kind"] == "folder" and path.startswith("share"):
            continue
        target = HASH.sub("HASH", about["target"]) if about["target"] else None
        found[path] = [about["kind"], about["mode"], target, owner]
    return found, strangers


def compare_view(out, real, ours):
    forms = []
    for facts in (real, ours):
        folder, name = os.path.split(facts["view"]["root"])
        forms.append(facts["view"]["target"].replace(folder, "DIR").replace(name, "NAME"))
    out.equal("view: where the symlink goes", *(HASH.sub("HASH", form) for form in forms))
    (theirs, strangers_there), (mine, strangers_here) = view_paths(real), view_paths(ours)
    out.equal("view: files that are not the store's", strangers_there, strangers_here)
    out.equal("view: what is in it", theirs, mine)


# --- console ------------------------------------------------------------------------------------------------

_LABEL = r"(?P<name>[a-z0-9-]+?)-[0-9][\w.]*-[a-z2-7]{32}"
FORMS = {
    "concretized": r"==> Concretized \d+ specs?:$",
    "node": r"( - |\[e\]|\[\+\])  [a-z2-7]{7}  ( *\^)?(?P<name>[a-z0-9-]+)@\S+.* arch=\S+( %\S+)?$",
    "no-binary": rf"==> No binary for {_LABEL} found: installing from source$",
    "installing": rf"==> Installing {_LABEL} \[\d+/\d+\]$",
    "fetching": r"==> (Fetching file:///\S+|Using cached archive: /\S+)$",
    "patches": r"==> (No patches needed for \S+|Ran patch\(\) for \S+|Applied patch \S+)$",
    "phase": r"==> (?P<name>[a-z0-9-]+): Executing phase: '(?P<phase>[a-z-]+)'$",
    "installed": rf"==> (?P<short>[a-z0-9-]+): Successfully installed {_LABEL}$",
    "times": r"  (?P<phases>[A-Z][a-z-]*: (\d+m )?\d+\.\d\ds\.  )+Total: (\d+m )?\d+\.\d\ds$",
    "external": rf"\[\+\] /usr \(external {_LABEL}\)$",
    "prefix": rf"\[\+\] /\S+/{_LABEL}$",
    "view": r"==> Updating view at /\S+$",
    "error": r"==> Error: (?P<error>Terminating after first install failure: \w+|\w+Error|[A-Z]\w+ \w+|.*)",
    "nothing": r"==> /\S+ environment has no specs to install$",
    "blank": r"$",
}
# Of what follows an error: how many lines of the log were found, which, and where the log is.
DETAILS = {
    "count": r"(?P<rest>\d+ errors? found in build log:)$",
    "marked": r"  >> \d+ +(?P<rest>.*)",
    "see": r"(?P<rest>See build log for details:)$",
    "log": r"  (?P<rest>/\S+/spack-stage-\S+/spack-build-out\.txt)$",
    "fetch": r" +file://\S+: (?P<rest>\w+):",
}
# Only Spack fetches these: its wrapper is a source of its own.
FETCHED_BY_SPACK_ONLY = "compiler-wrapper"


def forms_of(path):
    """Every line's form with its package, in the order of each package's own lines, errors' first words apart."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    events, unknown, errors, current, in_error = {}, [], [], "", False
    for line in lines:
        if line.startswith("rc "):
            errors.append(line)
            continue
        form, match = next(
            ((form, match) for form, pattern in FORMS.items() if (match := re.match(pattern, line))), ("", None)
        )
        if match is None:
            # What follows an error is the error's own words.
            details = [(name, found) for name, pattern in DETAILS.items() if (found := re.match(pattern, line))]
            if in_error:
                more = [f"{name}: {HASH.sub('HASH', found['rest'])}" for name, found in details]
                # Spack also tries the address in the recipe, which the stand-in does not know.
                errors += [each for each in more if not (each.startswith("fetch: ") and each == errors[-1])]
            else:
                unknown.append(line)
            continue
        in_error = form == "error" or (in_error and form == "blank")
        if form == "error":
            errors.append(re.match(r"[\w:' ]*", match["error"])[0].strip())
            continue
        named = match.groupdict()
        current = named.get("name") or current
        key = "" if form in ("view", "blank", "concretized", "nothing") else current
        if not (form == "fetching" and current == FETCHED_BY_SPACK_ONLY):
            events.setdefault(key, []).append(f"{form} {named.get('phase') or ''}".strip())
    # Which of those that could be next comes first is chance, so the one that failed has no name here.
    failed = {key for key, each in events.items() if "installing" in each and "installed" not in each}
    return {"FAILED" if key in failed else key: each for key, each in events.items()}, unknown, errors


def compare_console(out, real, ours):
    names = sorted(path.name for path in real.glob("*.log"))
    out.equal("console: calls", names, sorted(path.name for path in ours.glob("*.log")))
    for name in names:
        theirs, mine = forms_of(real / name), forms_of(ours / name)
        out.equal(f"console: {name}: lines of no known form", theirs[1], mine[1])
        out.equal(f"console: {name}: no line of Spack's is of an unknown form", [], theirs[1])
        out.equal(f"console: {name}: errors and status", theirs[2], mine[2])
        out.equal(f"console: {name}: lines of each package", theirs[0], mine[0])


def compare(real, ours):
    out = Differences()
    facts = [json.loads((folder / "facts.json").read_text(encoding="utf-8")) for folder in (real, ours)]
    compare_lock(out, *(each["lock"] for each in facts))
    compare_packages(out, *(each["packages"] for each in facts))
    compare_view(out, *facts)
    compare_console(out, real, ours)
    for difference in out.found:
        print(f"contract: DIFFERENT: {difference}", file=sys.stderr)
    print(f"contract: {out.compared} comparisons, {len(out.found)} differences")
    return 1 if out.found else 0


def main(arguments):
    if len(arguments) == 4 and arguments[0] == "collect":
        json.dump(collect(*arguments[1:]), sys.stdout)
        return 0
    if len(arguments) == 3 and arguments[0] == "compare":
        return compare(Path(arguments[1]), Path(arguments[2]))
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
