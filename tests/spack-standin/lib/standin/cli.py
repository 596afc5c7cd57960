"""The command line: the three commands that slurm-factory gives, with exactly the options that it gives.

    spack [--color WHEN] -C SCOPE -e ENVIRONMENT concretize [--force]
    spack [--color WHEN] -C SCOPE -e ENVIRONMENT fetch --missing
    spack [--color WHEN] -C SCOPE -e ENVIRONMENT fetch /HASH...
    spack [--color WHEN] -C SCOPE -e ENVIRONMENT install --only-concrete [--no-cache] [--fail-fast] [-j N]

Anything else ends as with Spack: an error, and a status that is not 0.
"""

import contextlib
import fcntl
import json
import os
import signal
import sys

from . import config, install, say, solve, view
from .build import BuildError
from .say import SpackError

_GLOBAL = {"--color": 1, "-C": 1, "--config-scope": 1, "-e": 1, "--env": 1}
_COMMANDS = {
    "concretize": {"-f": 0, "--force": 0},
    "fetch": {"-m": 0, "--missing": 0},
    "install": {"--only-concrete": 0, "--no-cache": 0, "--fail-fast": 0, "-j": 1, "--jobs": 1},
}
_SAME = {"--config-scope": "-C", "--env": "-e", "-f": "--force", "--jobs": "-j", "-m": "--missing"}


def _options(words, known):
    """Takes options off the front of `words`; what is left begins with something else."""
    found = {}
    while words and words[0].startswith("-"):
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if word[:2] == "-j" and len(word) > 2 and "-j" in known:
            name, equals, value = "-j", "=", word[2:]
        if name not in known:
            raise SpackError(f"unrecognized arguments: {word}")
        if known[name] and not equals:
            if not words:
                raise SpackError(f"argument {name}: expected one argument")
            value = words.pop(0)
        found[_SAME.get(name, name)] = value or True
    return found


@contextlib.contextmanager
def _locked(environment):
    """One at a time writes an environment's lockfile and view."""
    folder = os.path.join(environment, ".spack-env")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "transaction_lock"), "a+", encoding="utf-8") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _concretize(settings, options):
    lock_path = os.path.join(settings.environment, "spack.lock")
    if os.path.exists(lock_path) and "--force" not in options:
        return
    nodes, roots = solve.Solver(settings).solve()
    with _locked(settings.environment):
        beside = f"{lock_path}.{os.getpid()}"
        with open(beside, "w", encoding="utf-8") as stream:
            json.dump(solve.to_lock(nodes, roots), stream, separators=(",", ":"))
        os.replace(beside, lock_path)
    say.message(f"Concretized {len(roots)} spec{'s' if len(roots) > 1 else ''}:")
    _show(nodes, sorted(node.hash for node, _ in roots), 0, set())
    say.line()
    with _locked(settings.environment):
        for each in settings.views:
            view.update(each, nodes, [node.hash for node, _ in roots])


def _show(nodes, hashes, depth, seen):
    for hash in hashes:
        if hash in seen:
            continue
        seen.add(hash)
        node = nodes[hash]
        status = "[e]" if node.external else "[+]" if os.path.isdir(node.prefix) else " - "
        mark = " " * (4 * depth) + "^" if depth else ""
        say.line(f"{status}  {hash[:7]}  {mark}{solve.spec_text(node, nodes)}")
        _show(nodes, list(node.needs("build", "link", "run")), depth + 1, seen)


def _fetch(settings, options):
    named = {word.removeprefix("/") for word in options.get("named", ())}
    if "--missing" not in options and not named:
        raise SpackError("the stand-in fetches what is not installed, or hashes: fetch --missing, fetch /HASH")
    lock_path = os.path.join(settings.environment, "spack.lock")
    if not os.path.exists(lock_path):
        raise SpackError("No uninstalled specs in environment. Did you run `spack concretize` yet?")
    nodes, roots = solve.from_lock(lock_path, settings.store)
    install.fetch(settings, nodes, roots, named)


def _install(settings, options):
    if "--only-concrete" not in options:
        raise SpackError("the stand-in installs what is in the lockfile only: install --only-concrete")
    jobs = int(options.get("-j", settings.jobs))
    lock_path = os.path.join(settings.environment, "spack.lock")
    if not os.path.exists(lock_path):
        say.message(f"{settings.environment} environment has no specs to install")
        return
    nodes, roots = solve.from_lock(lock_path, settings.store)
    failure = None
    try:
        install.install(settings, nodes, roots, jobs, binaries="--no-cache" not in options)
    except BuildError as problem:
        failure = problem
    with _locked(settings.environment):
        for each in settings.views:
            view.update(each, nodes, roots)
    if failure is not None:
        raise SpackError(f"Terminating after first install failure: {failure}")


def _stop(number, _):
    raise SystemExit(128 + number)


def main(arguments):
    signal.signal(signal.SIGTERM, _stop)
    os.umask(0o022)
    try:
        words = list(arguments)
        general = _options(words, _GLOBAL)
        if not words or words[0] not in _COMMANDS:
            name = words[0] if words else ""
            raise SpackError(
                f"{name} is not a recognized Spack command or extension command; check with `spack commands`."
            )
        command = words.pop(0)
        options = _options(words, _COMMANDS[command])
        if command == "fetch" and words and all(word.startswith("/") for word in words):
            options["named"], words = words, []
        if words:
            raise SpackError(f"the stand-in takes specs from the environment only, not `{' '.join(words)}`")
        for name in ("-C", "-e"):
            if name not in general:
                raise SpackError(f"the stand-in needs {name}")
        settings = config.read(general["-C"], general["-e"])
        {"concretize": _concretize, "fetch": _fetch, "install": _install}[command](settings, options)
    except SpackError as problem:
        say.error(problem)
        return 1
    except KeyboardInterrupt:
        print("==> Keyboard interrupt.", file=sys.stderr)
        return 130
    return 0
