"""Reads a spack.lock and compares it with what was meant: solution.py LOCK EXPECTED"""

import json
import sys

# What has no place in a package: each would bring a tree of its own along at run time.
NEVER = ("bash", "cuda", "glib", "gtkplus", "intel-oneapi-mpi", "intel-oneapi-runtime", "krb5", "libbsd", "llvm", "mariadb", "mpich", "perl", "python", "rocm-core", "x11", "libx11")


def main():
    lock = json.load(open(sys.argv[1], encoding="utf-8"))
    expected = json.load(open(sys.argv[2], encoding="utf-8"))
    specs = lock["concrete_specs"]
    wrong = []

    # what is linked or run from the roots: that is what the view holds
    kept, waiting = {}, [root["hash"] for root in lock["roots"]]
    while waiting:
        digest = waiting.pop()
        if digest in kept:
            continue
        spec = kept[digest] = specs[digest]
        for dependency in spec.get("dependencies", []):
            if {"link", "run"} & set(dependency["parameters"]["deptypes"]):
                waiting.append(dependency["hash"])

    name, version = expected["root"]
    roots = [specs[root["hash"]] for root in lock["roots"]]
    if version not in [spec["version"] for spec in roots if spec["name"] == name]:
        wrong.append(f"{[spec['name'] + '@' + spec['version'] for spec in roots]} and not {name}@{version}")
    names = {spec["name"] for spec in specs.values()}
    wrong += [f"{name} was to come along" for name in expected["with"] if name not in names]
    wrong += [f"{name} was to be left out" for name in expected["without"] if name in names and name not in expected["with"]]
    for spec in kept.values():
        if spec["name"] in NEVER and not spec.get("external"):
            wrong.append(f"{spec['name']} is linked or run")
    for spec in specs.values():
        target = spec["arch"]["target"]
        target = target if isinstance(target, str) else target["name"]
        if not spec.get("external") and target != expected["target"]:
            wrong.append(f"{spec['name']} is made for {target}")
        if "gcc" in expected and spec["name"] == "gcc" and spec["version"] != expected["gcc"]:
            wrong.append(f"gcc {spec['version']} and not {expected['gcc']}")
        if spec["name"] in ("slurm", "munge", "ncurses", "lua") and spec.get("namespace") != "slurm_factory":
            wrong.append(f"{spec['name']} is {spec.get('namespace')}'s")
    if wrong:
        sys.exit("\n".join(wrong))
    built = [spec for spec in specs.values() if not spec.get("external")]
    print(f"{len(built)} packages to build, {sum(not s.get('external') for s in kept.values())} to ship")


main()
