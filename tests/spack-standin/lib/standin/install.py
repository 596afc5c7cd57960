"""Installs what the lockfile names: one prefix after the other, dependencies first, each whole or not there.

    STORE/NAME-VERSION-HASH/...                  what the package installs
    STORE/NAME-VERSION-HASH/.spack/spec.json     written last: a prefix without it is a killed run's, and is removed
    STORE/.spack-db/prefix_lock                  one byte a prefix, locked while somebody builds it (fcntl)
    STORE/.spack-db/index.json                   what is installed, as Spack's database of version 8 says it: who pushes to a binary
                                                 cache reads it
"""

import base64
import contextlib
import fcntl
import gzip
import hashlib
import json
import os
import platform
import shutil
import stat
import tarfile
import time

from . import say
from .build import Build, BuildError
from .recipes import RECIPES
from .say import SpackError


class PrefixLocks:
    """Locks between processes that share a store.

    The file stays open until the end: closing any descriptor of it would drop every lock that this process has on it.
    """

    def __init__(self, store, timeout):
        folder = os.path.join(store, ".spack-db")
        os.makedirs(folder, exist_ok=True)
        self.path = os.path.join(folder, "prefix_lock")
        self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o755)
        self.timeout = timeout

    @contextlib.contextmanager
    def held(self, node):
        place = int.from_bytes(base64.b32decode(node.hash.upper())[:7], "big")
        until = time.monotonic() + self.timeout
        while True:
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
                break
            except (BlockingIOError, PermissionError):
                if time.monotonic() > until:
                    raise SpackError(f"Timed out waiting for a write lock on {node.label} in {self.path}") from None
                time.sleep(0.2)
        try:
            yield
        finally:
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, place)


def _is_whole(node):
    return node.external or os.path.isfile(os.path.join(node.prefix, ".spack/spec.json"))


def _write(path, text):
    """Beside, then renamed."""
    beside = f"{path}.{os.getpid()}"
    with open(beside, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(beside, path)


def _compact(value):
    return json.dumps(value, separators=(",", ":"))


def order(nodes, roots):
    """Hashes of what is to be handled, dependencies first. What is there already needs none of its build tools."""
    waits = {}  # hash -> hashes that it waits for
    queue = list(roots)
    while queue:
        hash = queue.pop()
        if hash not in waits:
            types = ("link", "run") if _is_whole(nodes[hash]) else ("build", "link", "run")
            waits[hash] = set(nodes[hash].needs(*types))
            queue += waits[hash]
    found = []
    while waits:
        # As Spack goes: everything that waits for nothing, then what waited for that.
        ready = sorted((hash for hash in waits if not waits[hash]), key=lambda hash: nodes[hash].name)
        for hash in ready:
            del waits[hash]
        for left in waits.values():
            left.difference_update(ready)
        found += ready
    return found


def install(config, nodes, roots, jobs, binaries):
    """Installs everything up to the first failure. `binaries`: whether Spack would have looked for them first."""
    locks = PrefixLocks(config.store, config.lock_timeout)
    wanted = order(nodes, roots)
    try:
        _install_all(config, nodes, wanted, jobs, binaries, locks)
    finally:
        _record(config.store, nodes, wanted, roots)


def _install_all(config, nodes, wanted, jobs, binaries, locks):
    for number, hash in enumerate(wanted, 1):
        node = nodes[hash]
        if node.external:
            say.line(f"[+] {node.prefix} (external {node.label})")
            continue
        with locks.held(node):
            if not _is_whole(node):
                status = f" [{number}/{len(wanted)}]" if config.show_status else ""
                if not (binaries and _install_binary(config, node, status)):
                    if binaries:
                        say.message(f"No binary for {node.label} found: installing from source")
                    _install_one(config, nodes, node, status, jobs)
        say.line(f"[+] {say.short(node.prefix)}")


def _record(store, nodes, wanted, roots):
    """Adds what is whole to the database of the store. Another process may do the same at the same time."""
    folder = os.path.join(store, ".spack-db")
    with open(os.path.join(folder, "lock"), "a", encoding="utf-8") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        path = os.path.join(folder, "index.json")
        installs = {}
        if os.path.exists(path):
            with open(path, encoding="utf-8") as stream:
                installs = json.load(stream)["database"]["installs"]
        for node in (nodes[hash] for hash in wanted):
            if _is_whole(node):
                known = installs.get(node.hash, {})
                installs[node.hash] = {
                    "spec": node.data,
                    "path": node.prefix,
                    "installed": True,
                    "ref_count": 0,
                    "explicit": node.hash in roots or known.get("explicit", False),
                }
        _write(path, _compact({"database": {"version": "8", "installs": installs}}))


def fetch(config, nodes, roots, named=()):
    """Brings the sources of everything that is not installed into the source cache, or of the named, up to the first failure."""
    if all(_is_whole(nodes[hash]) for hash in roots):
        raise SpackError("No uninstalled specs in environment. Did you run `spack concretize` yet?")
    seen, queue = [], list(roots)
    while queue:
        hash = queue.pop(0)
        if hash not in seen:
            seen.append(hash)
            queue[:0] = nodes[hash].needs("build", "link", "run")
    for node in (nodes[hash] for hash in seen):
        recipe = RECIPES.get(node.name)
        wanted = node.hash in named if named else not _is_whole(node)
        if recipe is not None and not node.external and wanted:
            try:
                Build(node, recipe, nodes, config, 1).fetch()
            except BuildError as problem:
                raise SpackError(str(problem).removeprefix("FetchError: ")) from problem


def _install_binary(config, node, status):
    """Installs a package out of a binary cache of layout v3; false when none has it.

    Only what lies on disk and was made for this store is taken. Signatures are slurm-factory's to check: it shows a cache that it
    has put together of what is good.
    """
    version = node.data["version"]
    below = f"v3/manifests/spec/{node.name}/{node.name}-{version}-{node.hash}.spec.manifest.json"
    for url in config.binaries:
        cache = url.removeprefix("file://").rstrip("/")
        path = os.path.join(cache, below)
        if not os.path.isfile(path):
            continue
        with open(path, encoding="utf-8") as stream:
            text = stream.read().partition("-----BEGIN PGP SIGNATURE-----")[0]
        total = json.loads(text[text.index("{") : text.rindex("}") + 1])["data"][0]["checksum"]
        say.message(f"Installing {node.label}{status}")
        shutil.rmtree(node.prefix, ignore_errors=True)
        say.message(f"Extracting {node.label} from binary cache")
        last = None
        with tarfile.open(os.path.join(cache, "blobs/sha256", total[:2], total)) as archive:
            top = node.prefix.lstrip("/") + "/"
            for member in archive:
                if not member.name.startswith(top):
                    continue
                member.name = member.name[len(top) :]
                if member.islnk():
                    member.linkname = member.linkname[len(top) :]
                if member.name == ".spack/spec.json":
                    last = archive.extractfile(member).read().decode()
                else:
                    archive.extract(member, node.prefix)
        _write(os.path.join(node.prefix, ".spack/spec.json"), last)
        say.message(f"{node.name}: Successfully installed {node.label}")
        return True
    return False


def _install_one(config, nodes, node, status, jobs):
    recipe = RECIPES.get(node.name)
    if recipe is None:
        raise SpackError(f"{node.label}: the stand-in has no recipe for {node.name}")
    shutil.rmtree(node.prefix, ignore_errors=True)
    if os.path.lexists(node.prefix):
        raise SpackError(f"{node.prefix} is left from an earlier run and cannot be removed")
    say.message(f"Installing {node.label}{status}")
    build = Build(node, recipe, nodes, config, jobs)
    try:
        build.phase("stage", build.prepare)
        os.makedirs(os.path.join(node.prefix, ".spack"))
        # As Spack leaves it: folders inherit the group.
        for folder in (node.prefix, os.path.join(node.prefix, ".spack")):
            os.chmod(folder, 0o2755)
        build.build()
        build.phase("post-install", lambda: _leave_records(build, config))
    except BuildError as problem:
        say.error(f"{problem}{os.linesep * 2 + problem.details if problem.details else ''}")
        shutil.rmtree(node.prefix, ignore_errors=True)
        raise
    _write(os.path.join(node.prefix, ".spack/spec.json"), _compact(_spec_json(node, nodes)))
    shutil.rmtree(build.stage, ignore_errors=True)
    total = time.monotonic() - build.started
    say.message(f"{node.name}: Successfully installed {node.label}")
    shown = ".  ".join(f"{name.capitalize()}: {_seconds(spent)}" for name, spent in [*build.times, ("total", total)])
    say.line(f"  {shown}")


def _seconds(spent):
    minutes, rest = divmod(spent, 60)
    return f"{int(minutes)}m {rest:.2f}s" if minutes else f"{rest:.2f}s"


def _spec_json(node, nodes):
    """The node and everything that it needs, itself first."""
    found, queue = {}, [node.hash]
    while queue:
        hash = queue.pop(0)
        if hash not in found:
            found[hash] = nodes[hash].data
            queue += nodes[hash].needs("build", "link", "run")
    return {"spec": {"_meta": {"version": 5}, "nodes": list(found.values())}}


def _leave_records(build, config):
    """What Spack leaves in `.spack` beside spec.json: log, environment, times, the recipe, a manifest."""
    node = build.node
    folder = os.path.join(node.prefix, ".spack")
    with open(build.log_path, "rb") as log, gzip.open(os.path.join(folder, "spack-build-out.txt.gz"), "wb") as kept:
        shutil.copyfileobj(log, kept)
    _write(os.path.join(folder, "spack-build-env.txt"), build.environment_text())
    arch = node.data["arch"]
    build.archive(os.path.join(folder, "archived-files"))
    if build.configure_arguments:
        _write(os.path.join(folder, "spack-configure-args.txt"), " ".join(build.configure_arguments))
    about = {
        "host_os": arch["platform_os"],
        "platform": arch["platform"],
        "host_target": arch["target"],
        "hostname": platform.node(),
        "spack_version": "1.0.0",
        "kernel_version": platform.version(),
    }
    _write(os.path.join(folder, "install_environment.json"), _compact(about))
    phases = [{"name": name, "path": name, "seconds": spent, "count": 1} for name, spent in build.times]
    times = {"total": time.monotonic() - build.started, "phases": phases, "name": node.name, "cache": False}
    _write(os.path.join(folder, "install_times.json"), _compact({**times, "hash": node.hash}))
    _keep_recipe(node, config.repos, folder)
    _write(os.path.join(folder, "install_manifest.json"), _compact(_manifest(node.prefix)))


def _keep_recipe(node, repos, folder):
    """A copy of the recipe's folder, below its repository's name, when it has one."""
    namespace = node.data["namespace"]
    recipe = os.path.join("packages", node.name.replace("-", "_"))
    source, target = repos.get(namespace, ""), os.path.join(folder, "repos/spack_repo", namespace)
    os.makedirs(target)
    if os.path.isfile(os.path.join(source, "repo.yaml")):
        shutil.copyfile(os.path.join(source, "repo.yaml"), os.path.join(target, "repo.yaml"))
    if os.path.isdir(os.path.join(source, recipe)):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(os.path.join(source, recipe), os.path.join(target, recipe), ignore=ignored)


def _manifest(prefix):
    """Every file of the prefix with its mode, owner, and what it holds."""
    found = {}
    for folder, folders, files in os.walk(prefix):
        for name in folders + files:
            path = os.path.join(folder, name)
            about = os.lstat(path)
            found[path] = {"mode": about.st_mode, "owner": about.st_uid, "group": about.st_gid}
            if stat.S_ISLNK(about.st_mode):
                found[path]["dest"] = os.readlink(path)
            elif stat.S_ISREG(about.st_mode):
                with open(path, "rb") as stream:
                    total = base64.b32encode(hashlib.sha1(stream.read()).digest()).decode()
                found[path].update(hash=total, time=about.st_mtime, size=about.st_size)
    return found
