"""Reads what `-C SCOPE` and `-e ENVIRONMENT` hold, and refuses what is missing or not understood.

Spack would fill gaps from its defaults; here every gap is an error, since a default of the stand-in would hide that
slurm-factory forgot to say something.
"""

import os
from dataclasses import dataclass

from . import yamlsubset
from .say import SpackError, warning

# Sections that are read, and those that real Spack needs but a stand-in has no use for.
_READ = ("config", "packages", "repos", "mirrors", "concretizer")
_NOT_NEEDED = ("bootstrap",)
_ENVIRONMENT_KEYS = {"specs", "view", "concretizer", "packages"}


@dataclass(frozen=True)
class View:
    """One view of the environment."""

    root: str
    link_type: str


@dataclass(frozen=True)
class Config:
    """Everything that decides what is built and where."""

    store: str
    stages: str
    source_cache: str
    jobs: int
    lock_timeout: int
    show_status: bool
    mirrors: tuple
    binaries: tuple
    repos: dict
    packages: dict
    environment: str
    specs: tuple
    views: tuple


def _load(path):
    try:
        with open(path, encoding="utf-8") as stream:
            return yamlsubset.load(stream.read(), path)
    except OSError as problem:
        raise SpackError(f"{path}: {problem.strerror}") from problem
    except yamlsubset.YamlError as problem:
        raise SpackError(str(problem)) from problem


def _section(scope, name):
    """The content of `SCOPE/name.yaml`. `name::` (replace, do not merge) is the key `name:`."""
    path = os.path.join(scope, f"{name}.yaml")
    document = _load(path)
    if not isinstance(document, dict) or len(document) != 1:
        raise SpackError(f"{path}: one key, `{name}`, was expected")
    ((key, value),) = document.items()
    if key.rstrip(":") != name or value is None:
        raise SpackError(f"{path}: `{key}` where `{name}` was expected")
    return value


def _at(tree, path, what):
    """The value at `a:b:c`; it must be there."""
    for part in path.split(":"):
        if not isinstance(tree, dict) or tree.get(part) in (None, "", []):
            raise SpackError(f"{what}:{path} is not set, and the stand-in has no default for it")
        tree = tree[part]
    return tree


def _folder(value, what):
    if not isinstance(value, str) or not value.startswith("/") or "$" in value:
        raise SpackError(f"{what} is `{value}`; the stand-in takes an absolute path without variables")
    return value


def _mirrors(section, kind):
    """Mirrors of this kind, `source` or `binary`, that lie on disk, in their order."""
    found = []
    for name, mirror in section.items():
        url = mirror if isinstance(mirror, str) else _at(mirror, "url", f"mirrors:{name}")
        if isinstance(mirror, dict) and mirror.get(kind) is False:
            continue
        if not url.startswith("file:///"):
            warning(f"mirror {name} is not on disk: the stand-in fetches nothing ({url})")
            continue
        found.append(url)
    return tuple(found)


def _merged(packages, more):
    """`more` goes over `packages`, key by key, as an environment's section does over a scope's."""
    result = {name: dict(entry) for name, entry in packages.items()}
    for name, entry in more.items():
        result.setdefault(name, {}).update(entry)
    return result


def _views(view, environment):
    if view is False or view is None:
        return ()
    if not isinstance(view, dict):
        raise SpackError(f"{environment}/spack.yaml: the stand-in reads views as a mapping of names")
    found = []
    for name, entry in view.items():
        what = f"view:{name}"
        if entry.get("link") != "all" or set(entry) - {"root", "link", "link_type"}:
            raise SpackError(f"{what}: the stand-in makes views with `link: all` and no selection")
        if entry.get("link_type") != "hardlink":
            raise SpackError(f"{what}: the stand-in makes hard links only, not `{entry.get('link_type')}`")
        found.append(View(_folder(_at(entry, "root", what), what), "hardlink"))
    return tuple(found)


_PADDING = "__spack_path_placeholder__"


def _padded(root, length):
    """The root with folders below it until its path has this length; one character alone cannot be had."""
    missing = length - len(root) - 1
    if missing < 1:
        return root
    whole, rest = divmod(missing, len(_PADDING) + 1)
    folders = "/".join([_PADDING] * whole + [_PADDING[:rest]])
    return f"{root}/{folders[:-1] + '_' if folders.endswith('/') else folders}"


def read(scope, environment):
    """Reads both folders."""
    for name in sorted(os.listdir(scope)):
        if name.startswith("."):
            continue  # a file that is being written beside its place
        if name.removesuffix(".yaml") not in _READ + _NOT_NEEDED:
            raise SpackError(f"{scope}/{name}: the stand-in does not know this section")
    section = {name: _section(scope, name) for name in _READ}
    config = section["config"]
    projections = _at(config, "install_tree:projections", "config")
    if projections != {"all": "{name}-{version}-{hash}"}:
        raise SpackError("config:install_tree:projections: the stand-in knows `all: {name}-{version}-{hash}` only")
    if _at(config, "shared_linking:type", "config") != "rpath":
        raise SpackError("config:shared_linking:type: the stand-in leaves RPATHs only")

    document = _load(os.path.join(environment, "spack.yaml"))
    asked = _at(document, "spack", "spack.yaml")
    if unknown := set(asked) - _ENVIRONMENT_KEYS:
        raise SpackError(f"{environment}/spack.yaml: the stand-in does not know {sorted(unknown)}")
    for where, tree in (("spack.yaml", asked), ("concretizer.yaml", section)):
        if _at(tree, "concretizer:unify", where) is not True:
            raise SpackError(f"{where}: the stand-in unifies: one version of a package for all roots")
    packages = section["packages"]
    return Config(
        store=_padded(
            _folder(_at(config, "install_tree:root", "config"), "config:install_tree:root"),
            int(config["install_tree"].get("padded_length", 0)),
        ),
        stages=_folder(_at(config, "build_stage", "config")[0], "config:build_stage"),
        source_cache=_folder(_at(config, "source_cache", "config"), "config:source_cache"),
        jobs=int(_at(config, "build_jobs", "config")),
        lock_timeout=int(_at(config, "db_lock_timeout", "config")),
        show_status=config.get("install_status", True) is True,
        mirrors=_mirrors(section["mirrors"], "source"),
        binaries=_mirrors(section["mirrors"], "binary"),
        repos={name: _folder(path, f"repos:{name}") for name, path in section["repos"].items()},
        packages=_merged(packages, asked.get("packages") or {}),
        environment=environment,
        specs=tuple(_at(asked, "specs", "spack.yaml")),
        views=_views(asked.get("view"), environment),
    )
