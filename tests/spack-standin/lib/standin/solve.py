"""Chooses versions and variants for an environment's specs: the stand-in's concretizer, and the form of its result.

There is nothing to search: each package has the versions and the variants that `recipes` and versions.json name, and
what does not fit them is refused. Nodes, hashes and the lockfile have Spack's form:

    hash = base32(sha1(compact JSON of the node without its hash)), lower case
"""

import base64
import functools
import hashlib
import json
import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from . import versions
from .recipes import EXTERNAL, PROVIDERS, RECIPES
from .say import SpackError

_NO_FLAGS = {flag: [] for flag in versions.FLAGS}
_EXTENSIONS = ("tar.gz", "tar.bz2", "tar.xz")


@dataclass(frozen=True)
class Node:
    """A package as it was chosen. `data` is its JSON, in Spack's order of keys."""

    data: dict
    prefix: str

    @property
    def name(self):
        return self.data["name"]

    @property
    def hash(self):
        return self.data["hash"]

    @property
    def label(self):
        return f"{self.name}-{self.data['version']}-{self.hash}"

    @property
    def external(self):
        return "external" in self.data

    def needs(self, *types):
        """Hashes of the dependencies that have one of these types."""
        for entry in self.data.get("dependencies", ()):
            if set(types) & set(entry["parameters"]["deptypes"]):
                yield entry["hash"]


def _base32(digest):
    return base64.b32encode(digest).decode().lower()


def dag_hash(data):
    """The hash of a node's JSON."""
    bare = {key: value for key, value in data.items() if key != "hash"}
    return _base32(hashlib.sha1(json.dumps(bare, separators=(",", ":")).encode()).digest())


@functools.cache
def _own_code():
    """Sum over the stand-in itself: when it builds otherwise, everything has another hash."""
    total = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.is_file():
            total.update(path.read_bytes())
    return total.digest()


def operating_system(path="/etc/os-release"):
    """`debian12`, `ubuntu24.04`: Spack drops the minor version of distributions that have none of weight."""
    with open(path, encoding="utf-8") as stream:
        values = dict(line.rstrip().split("=", 1) for line in stream if "=" in line)
    name, version = (values.get(key, "").strip('"') for key in ("ID", "VERSION_ID"))
    return name + (version if name == "ubuntu" else version.split(".")[0])


def spec_text(node, nodes):
    """One line that says everything of a node, as `spack concretize` prints it; `nodes` are all, by hash."""
    arch = node.data["arch"]
    text = f"{node.name}@{node.data['version']}{versions.variants_text(node.data['parameters'])}"
    text += f" arch={arch['platform']}-{arch['platform_os']}-{arch['target']}"
    for entry in node.data.get("dependencies", ()):
        if entry["name"] == "gcc" and (languages := entry["parameters"]["virtuals"]):
            text += f" %{','.join(languages)}=gcc@{nodes[entry['hash']].data['version']}"
    return text


class Repositories:
    """The recipe repositories of `repos:`, first come first served; where a package has none, ours is builtin's."""

    def __init__(self, repos):
        self.repos = repos
        for name, path in repos.items():
            if not os.path.isfile(os.path.join(path, "repo.yaml")):
                raise SpackError(f"No repo.yaml found in '{path}' (repos:{name})")

    def find(self, package):
        """Namespace and folder of a package's recipe; the folder is None when there is none."""
        for name, path in self.repos.items():
            folder = os.path.join(path, "packages", package.replace("-", "_"))
            if os.path.isdir(folder):
                return name, folder
        return "builtin", None


def known_versions(recipe, repositories):
    """What versions there are: the recipe's, and those of versions.json in its repository."""
    found = dict(recipe.versions)
    _, folder = repositories.find(recipe.name)
    if recipe.versions_file and folder:
        path = os.path.join(folder, "versions.json")
        try:
            with open(path, encoding="utf-8") as stream:
                entries = json.load(stream)["versions"]
        except (OSError, ValueError, KeyError) as problem:
            raise SpackError(f"{path}: {problem}") from problem
        for entry in entries:
            name = urllib.parse.urlsplit(entry["url"]).path
            extension = entry.get("extension") or next((e for e in _EXTENSIONS if name.endswith("." + e)), None)
            if extension is None:
                raise SpackError(f"{path}: no extension is known for {entry['url']}")
            found[entry["version"]] = (entry["sha256"], extension)
    return found


class Solver:
    """Resolves the environment's roots."""

    def __init__(self, config):
        self.config = config
        self.repositories = Repositories(config.repos)
        self.nodes = {}  # name -> Node
        everything = config.packages.get("all", {})
        if not everything.get("target"):
            raise SpackError("packages:all:target is not set, and the stand-in has no default for it")
        self.arch = {
            "platform": "linux",
            "platform_os": operating_system(),
            "target": everything["target"][0],
        }
        for virtual, provider in PROVIDERS.items():
            wanted = (everything.get("providers") or {}).get(virtual, [provider])
            if wanted[0] != provider:
                raise SpackError(f"packages:all:providers: the stand-in has {provider} alone for {virtual}")

    def fail(self, root, reason):
        raise SpackError(f"failed to concretize `{root}` for the following reasons:\n     1. {reason}")

    def solve(self):
        """The nodes by hash, dependencies first, and the roots."""
        asked = {}
        for text in self.config.specs:
            constraint = versions.parse(text)
            if constraint.name in asked:
                self.fail(text, f"{constraint.name} is asked for twice, which the stand-in does not bring together")
            asked[constraint.name] = constraint
        self.asked = asked
        roots = [
            (self.built_gcc(constraint) if name == "gcc" else self.node(name, constraint.text), constraint)
            for name, constraint in asked.items()
        ]
        return {node.hash: node for node in self.nodes.values()}, roots

    def constraints(self, name):
        """Everything that is said of a package: by a root of its name, and by `packages: NAME: require`."""
        found = [self.asked[name]] if name in self.asked else []
        required = self.config.packages.get(name, {}).get("require", [])
        for text in [required] if isinstance(required, str) else required:
            if not isinstance(text, str):
                raise SpackError(f"packages:{name}:require: the stand-in reads a list of constraints")
            found.append(versions.parse(text))
        return found

    def node(self, name, root):
        if name not in self.nodes:
            if name in EXTERNAL:
                self.nodes[name] = self.external(name, root)
            elif name in RECIPES:
                self.nodes[name] = self.package(RECIPES[name], root)
            else:
                have = ", ".join(sorted(RECIPES))
                raise SpackError(
                    f"cannot concretize '{root}', since '{name}' does not exist (the stand-in has: {have})"
                )
        return self.nodes[name]

    def built_gcc(self, constraint):
        """A GCC that is asked for is built by the one that is there."""
        own = self.node("gcc", constraint.text)
        if self.config.packages["gcc"].get("buildable") is not True:
            self.fail(constraint.text, "packages:gcc is not buildable")
        if constraint.compiler != own.data["version"]:
            self.fail(constraint.text, f"Cannot satisfy '%gcc@={constraint.compiler}': there is {own.data['version']}")
        # Not under its own name: that of the compiler means the one that is there.
        self.nodes["gcc (built)"] = self.package(RECIPES["gcc"], constraint.text)
        return self.nodes["gcc (built)"]

    def external(self, name, root):
        if name == "glibc" and name not in self.config.packages:
            entry = {"spec": "glibc@" + os.confstr("CS_GNU_LIBC_VERSION").split()[1], "prefix": "/usr"}
        else:
            entries = self.config.packages.get(name, {}).get("externals")
            if not entries:
                self.fail(root, f"`{name}` is needed from the root file system, and packages:{name} has no externals")
            entry = entries[0]
        spec = versions.parse(entry["spec"])
        variants = dict(spec.variants)
        if "languages" in variants:
            variants["languages"] = variants["languages"].split(",")
        attributes = entry.get("extra_attributes") or {}
        data = {
            "name": name,
            "version": spec.versions[0].lstrip("="),
            "arch": self.arch,
            "namespace": self.repositories.find(name)[0],
            "parameters": {**dict(sorted({"build_system": "generic", **variants}.items())), **_NO_FLAGS},
            "external": {"path": entry["prefix"], "module": None, "extra_attributes": attributes},
            "package_hash": _base32(hashlib.sha256(_own_code()).digest()),
            "annotations": {"original_specfile_version": 5},
        }
        return Node({**data, "hash": dag_hash(data)}, entry["prefix"])

    def package(self, recipe, root):
        constraints = self.constraints(recipe.name)
        dependencies = []
        for need in sorted(recipe.needs, key=lambda need: need.name):
            parameters = {"deptypes": list(need.types), "virtuals": list(need.virtuals)}
            dependencies.append({"name": need.name, "hash": self.node(need.name, root).hash, "parameters": parameters})
        version = self.version(recipe, constraints, root)
        parameters = {"build_system": recipe.build_system, **self.variants(recipe, constraints, root)}
        namespace, folder = self.repositories.find(recipe.name)

        content = hashlib.sha256(_own_code())
        content.update(repr(known_versions(recipe, self.repositories).get(version)).encode())
        if folder and os.path.isfile(path := os.path.join(folder, "package.py")):
            content.update(Path(path).read_bytes())
        patches = [self.patch_sum(recipe, folder, patch, root) for patch in recipe.patches]
        if patches:
            parameters["patches"] = patches
        data = {
            "name": recipe.name,
            "version": version,
            "arch": self.arch,
            "namespace": namespace,
            "parameters": {**dict(sorted(parameters.items())), **_NO_FLAGS},
            **({"patches": patches} if patches else {}),
            "package_hash": _base32(content.digest()),
            **({"dependencies": dependencies} if dependencies else {}),
            "annotations": {"original_specfile_version": 5},
        }
        own = dag_hash(data)
        return Node({**data, "hash": own}, f"{self.config.store}/{recipe.name}-{version}-{own}")

    def patch_sum(self, recipe, folder, patch, root):
        if not folder:
            self.fail(root, f"no repository of repos: has {recipe.name}, whose {patch} is needed")
        try:
            return hashlib.sha256(Path(folder, patch).read_bytes()).hexdigest()
        except OSError as problem:
            raise SpackError(f"{problem.filename}: {problem.strerror}") from problem

    def version(self, recipe, constraints, root):
        known = list(known_versions(recipe, self.repositories))
        if recipe.name == "gcc-runtime":
            known = [self.nodes["gcc"].data["version"]]
        have = ", ".join(known) or "none"
        for constraint in constraints:
            if constraint is not self.asked.get(recipe.name) and not any(map(constraint.admits, known)):
                raise SpackError(
                    f"Version requirement {','.join(constraint.versions)} on {recipe.name} for {recipe.name} cannot "
                    f"match any known version from package.py or externals (the stand-in has: {have})"
                )
        fitting = [version for version in known if all(constraint.admits(version) for constraint in constraints)]
        if not fitting:
            wanted = "' and '".join(f"{recipe.name}@{group}" for each in constraints for group in each.versions)
            self.fail(root, f"Cannot satisfy '{wanted or recipe.name}' (the stand-in has: {have})")
        return max(fitting, key=versions.key)

    def variants(self, recipe, constraints, root):
        chosen = {name: variant.default for name, variant in recipe.variants.items()}
        for constraint in constraints:
            for name, value in constraint.variants.items():
                if name == "build_system":
                    if value != recipe.build_system:
                        self.fail(root, f"`{recipe.name} build_system={value}` cannot be built by the stand-in")
                    continue
                if name not in chosen:
                    raise SpackError(f"No such variant {{'{name}'}} for spec: '{constraint.text}'")
                if isinstance(chosen[name], list):
                    value = sorted(value.split(","))
                chosen[name] = value
        for name, value in chosen.items():
            can = recipe.variants[name].can
            if can is not None and value not in can:
                asked = versions.variants_text({name: value}).strip()
                self.fail(root, f"`{recipe.name} {asked}` cannot be built by the stand-in")
        return chosen


def root_text(constraint):
    """A root as the lockfile has it: without blanks but between values."""
    groups = "".join("@" + group for group in constraint.versions)
    return constraint.name + groups + versions.variants_text(constraint.variants)


def to_lock(nodes, roots):
    """The lockfile's content."""
    return {
        "_meta": {"file-type": "spack-lockfile", "lockfile-version": 6, "specfile-version": 5},
        "spack": {"version": "1.0.0", "type": "release"},
        "roots": [{"hash": node.hash, "spec": root_text(constraint)} for node, constraint in roots],
        "concrete_specs": {hash: nodes[hash].data for hash in reversed(nodes)},
    }


def from_lock(path, store):
    """Nodes by hash, and the roots' hashes, out of a lockfile."""
    try:
        with open(path, encoding="utf-8") as stream:
            lock = json.load(stream)
        nodes = {}
        for hash, data in lock["concrete_specs"].items():
            if dag_hash(data) != hash:
                raise SpackError(f"{path}: {data['name']} does not have the hash that it is listed with")
            prefix = data["external"]["path"] if "external" in data else None
            nodes[hash] = Node(data, prefix or f"{store}/{data['name']}-{data['version']}-{hash}")
        return nodes, [root["hash"] for root in lock["roots"]]
    except (OSError, ValueError, KeyError) as problem:
        raise SpackError(f"{path} cannot be used: {problem}") from problem
