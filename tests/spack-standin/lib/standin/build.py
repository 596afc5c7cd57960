"""Builds one package: the stage, the environment with compiler and search paths, and the phases with their log.

    STAGES/USER/spack-stage-NAME-VERSION-HASH/spack-src              the sources
    STAGES/USER/spack-stage-NAME-VERSION-HASH/spack-build-out.txt    what the phases printed

A stage that ends well is removed; that of a failed build stays, since its log is what the user is sent to.
"""

import datetime
import getpass
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import time
import urllib.parse

from . import say
from .solve import Repositories, known_versions

_ERROR = re.compile(
    r": (fatal )?error: |undefined reference to|^configure: error:|^CMake Error|^make.*\*\*\* |: not found$|^error:",
    re.IGNORECASE,
)
# Lines of the log shown around each error, and how many errors at most.
_CONTEXT, _ERRORS = 6, 5


class BuildError(Exception):
    """A phase failed. `details` follows the message on the console, once."""

    def __init__(self, message, details=""):
        super().__init__(message)
        self.details = details


def check_sum(path, wanted):
    total = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest() == wanted


class Build:
    """A package that is being built, as its recipe's phases see it."""

    def __init__(self, node, recipe, nodes, config, jobs):
        self.node = node
        self.recipe = recipe
        self.nodes = nodes
        self.config = config
        self.jobs = jobs
        self.prefix = pathlib.Path(node.prefix)
        self.stage = pathlib.Path(config.stages, getpass.getuser(), f"spack-stage-{node.label}")
        self.source = self.stage / "spack-src"
        self.log_path = self.stage / "spack-build-out.txt"
        self.cmake_folder = self.stage / f"spack-build-{node.hash[:7]}"
        self.configure_arguments = ()
        self.times = []
        self.started = time.monotonic()
        self.environment = self._environment()

    # --- what recipes use ----------------------------------------------------------------------------------------

    @property
    def variants(self):
        return self.node.data["parameters"]

    def dependency(self, name):
        """The prefix of a direct dependency."""
        for entry in self.node.data["dependencies"]:
            if entry["name"] == name:
                return self.nodes[entry["hash"]].prefix
        raise BuildError(f"{self.node.name} does not depend on {name}")

    def make(self, *arguments, **environment):
        self.run("make", f"-j{self.jobs}", *arguments, **environment)

    def run(self, *argv, **environment):
        """Runs a command among the sources, its output to the log."""
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d-%H:%M:%S.%f")
        if "/" not in argv[0]:
            argv = (shutil.which(argv[0], path=self.environment["PATH"]) or argv[0], *argv[1:])
        shown = " ".join(f"'{word}'" for word in argv)
        with open(self.log_path, "a", encoding="utf-8") as log:
            log.write(f"==> [{stamp}] {shown}\n")
            log.flush()
            try:
                process = subprocess.Popen(
                    argv,
                    cwd=self.source,
                    env={**self.environment, **environment},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as problem:
                raise BuildError(f"ProcessError: {argv[0]}: {problem.strerror}") from problem
            try:
                status = process.wait()
            except BaseException:
                # We were told to stop: nothing that we started may go on.
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        if status != 0:
            raise BuildError(f"ProcessError: Command exited with status {status}:\n    {shown}", self._found_in_log())

    def install_wrapper(self):
        """Our own compiler wrapper, where Spack has its own."""
        folder = self.prefix / "libexec/spack"
        (folder / "gcc").mkdir(parents=True)
        shutil.copy(pathlib.Path(__file__).with_name("cc.sh"), folder / "cc")
        (folder / "cc").chmod(0o755)
        for name in ("gcc", "g++"):
            (folder / "gcc" / name).symlink_to(folder / "cc")

    def install_gcc(self, programs, tools, libraries):
        """A copy of the GCC that is there, in the layout of one that was built: all that a GCC needs, and can be moved with.

        `tools` are the programs of binutils, and `libraries` GCC's own, for lib64.
        """
        gcc = self._compiler()

        def answer(question):
            return subprocess.run([gcc, question], capture_output=True, text=True, check=True).stdout.strip()

        own = pathlib.Path(answer("-print-libgcc-file-name")).resolve().parent
        version, machine = own.name, own.parent.name
        parts = {own, pathlib.Path(answer("-print-prog-name=cc1")).resolve().parent}
        parts |= {pathlib.Path("/usr/include/c++", version), pathlib.Path("/usr/include", machine, "c++", version)}
        for part in parts:
            place = self.prefix / part.relative_to("/usr")
            shutil.copytree(part, place, symlinks=True, dirs_exist_ok=True)
        (self.prefix / "bin").mkdir()
        for name in (*programs, *tools):
            found = shutil.which(name, path="/usr/bin")
            if found:
                shutil.copy(os.path.realpath(found), self.prefix / "bin" / name)
        self._install_runtime(libraries, "lib64")
        own = self.prefix / own.relative_to("/usr")
        for library in (self.prefix / "lib64").iterdir():
            for name in (library.name, re.sub(r"\.so\..*", ".so", library.name)):
                place = own / name
                # libgcc_s.so is a text that names the library.
                if name == library.name or place.is_symlink():
                    place.unlink(missing_ok=True)
                    place.symlink_to(os.path.relpath(library, own))
        self._install_needed()
        # As the recipe does.
        text = f"{answer('-dumpspecs')}\n\n# Generated by Spack\n\n*link_libgcc:\n+ -rpath {self.prefix}/lib64\n\n"
        (own / "specs").write_text(f"{text}*self_spec:\n+ -B{self.prefix}/bin\n\n", encoding="utf-8")

    def _install_needed(self):
        """The libraries that the programs load, for lib, but glibc's and those in lib64."""
        here = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|resolv))\.so\..*")
        (self.prefix / "lib").mkdir(exist_ok=True)
        for folder, _, names in os.walk(self.prefix):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.islink(path) or not os.access(path, os.X_OK):
                    continue
                listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
                for soname, found in re.findall(r"^\s*(\S+) => (/\S+) ", listed, re.MULTILINE):
                    if not here.fullmatch(soname) and not (self.prefix / "lib64" / soname).exists():
                        shutil.copy(found, self.prefix / "lib" / soname)

    def install_gcc_runtime(self, names):
        """Copies of the compiler's own run-time libraries, under their sonames."""
        self._install_runtime(names, "lib")

    def _compiler(self):
        own = next(entry for entry in self.node.data["dependencies"] if entry["name"] == "gcc")
        return self.nodes[own["hash"]].data["external"]["extra_attributes"]["compilers"]["c"]

    def _install_runtime(self, names, folder):
        compiler = self._compiler()
        target = self.prefix / folder
        target.mkdir()
        for name in names:
            linked = self._compiler_says(compiler, f"lib{name}.so")
            if not linked:
                continue
            with open(linked, "rb") as stream:
                if stream.read(4) == b"\x7fELF":
                    soname = os.path.basename(os.path.realpath(linked))
                    soname = re.match(r".*?\.so\.\d+", soname)[0]
                else:
                    stream.seek(0)
                    soname = re.search(rb"\blib[a-z_+-]+\.so\.\d+", stream.read())[0].decode()
            found = self._compiler_says(compiler, soname)
            if found:
                # Spack's `install` gives 0644 to what is not executable.
                shutil.copy(found, target / soname)
                (target / soname).chmod(0o644)

    @staticmethod
    def _compiler_says(compiler, name):
        run = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        path = run.stdout.strip()
        return path if os.path.isabs(path) else None

    # --- the steps -------------------------------------------------------------------------------------------------

    def phase(self, name, step):
        """Runs a step and keeps its time."""
        started = time.monotonic()
        try:
            step()
        except OSError as problem:
            raise BuildError(f"{type(problem).__name__}: {problem}") from problem
        self.times.append((name, time.monotonic() - started))

    def prepare(self):
        """Makes the stage, with the sources in it and patches applied."""
        shutil.rmtree(self.stage, ignore_errors=True)
        self.source.mkdir(parents=True, mode=0o700)
        self.log_path.touch()
        archive = self.fetch()
        if archive is not None:
            self._unpack(archive)
        repositories = Repositories(self.config.repos)
        if not self.recipe.patches:
            say.message(f"No patches needed for {self.node.name}")
        for patch in self.recipe.patches:
            path = os.path.join(repositories.find(self.node.name)[1], patch)
            self.run("patch", "-s", "-p", "1", "-i", path, "-d", ".")
            say.message(f"Applied patch {path}")

    def fetch(self):
        """The source archive's place, for a package that has one."""
        source = known_versions(self.recipe, Repositories(self.config.repos)).get(self.node.data["version"])
        return None if source is None else self._fetch(*source)

    def build(self):
        """All phases of the recipe."""
        for name, function in self.recipe.phases:
            say.message(f"{self.node.name}: Executing phase: '{name}'")
            with open(self.log_path, "a", encoding="utf-8") as log:
                log.write(f"==> {self.node.name}: Executing phase: '{name}'\n")
            self.phase(name, lambda function=function: function(self))

    def archive(self, folder):
        """Keeps what tells how a package was configured; of libtool's archives, which name other prefixes, a list."""
        kept = []
        if self.recipe.build_system == "autotools":
            archives = sorted(self.prefix.rglob("*.la"))
            for path in archives:
                path.unlink()
            (self.source / "removed_la_files.txt").write_text("\n".join(map(str, archives)), encoding="utf-8")
            kept = [self.source / "config.log", self.source / "removed_la_files.txt"]
        elif self.recipe.build_system == "cmake":
            kept = [self.cmake_folder / "CMakeCache.txt", self.cmake_folder / "compile_commands.json"]
        for path in kept:
            target = pathlib.Path(folder, path.relative_to(self.stage))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)

    def environment_text(self):
        """The environment as Spack keeps it beside the log."""
        return "".join(f"export {name}={shlex.quote(value)};\n" for name, value in sorted(self.environment.items()))

    def _fetch(self, total, extension):
        """The source archive, out of the source cache or a mirror; the cache keeps it."""
        below = f"_source-cache/archive/{total[:2]}/{total}.{extension}"
        cached = os.path.join(self.config.source_cache, below)
        if os.path.isfile(cached) and check_sum(cached, total):
            say.message(f"Using cached archive: {cached}")
            return cached
        failures = []
        for mirror in self.config.mirrors:
            url = f"{mirror.rstrip('/')}/{below}"
            path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
            if not os.path.isfile(path):
                failures.append(f"{url}: URLError: <urlopen error [Errno 2] No such file or directory: '{path}'>")
                continue
            say.message(f"Fetching {url}")
            if not check_sum(path, total):
                failures.append(f"{url}: ChecksumError: sha256 checksum failed, expected {total}")
                continue
            os.makedirs(os.path.dirname(cached), exist_ok=True)
            beside = f"{cached}.{os.getpid()}"
            shutil.copy(path, beside)
            os.replace(beside, cached)
            return cached
        listed = "\n        ".join(
            failures or [f"no source mirror is configured; sha256 {total} ({extension}) is wanted"]
        )
        raise BuildError(f"FetchError: All fetchers failed for {self.stage.name}\n        {listed}")

    def _unpack(self, archive):
        """Unpacks, without the one folder that everything is in."""
        unpacked = self.stage / "unpacked"
        unpacked.mkdir()
        tar = subprocess.run(["tar", "-xf", archive, "-C", unpacked], capture_output=True, text=True, check=False)
        if tar.returncode != 0:
            raise BuildError(f"ProcessError: tar: {tar.stderr.strip()}")
        entries = list(unpacked.iterdir())
        top = entries[0] if len(entries) == 1 and entries[0].is_dir() else unpacked
        self.source.rmdir()
        top.rename(self.source)
        shutil.rmtree(unpacked, ignore_errors=True)

    def _linked(self):
        """Prefixes of the libraries that this package is linked with, its dependencies' ones too, nearest first."""
        found, queue = [], list(self.node.needs("link"))
        while queue:
            node = self.nodes[queue.pop(0)]
            if not node.external and node.prefix not in found:
                found.append(node.prefix)
            queue += node.needs("link")
        return found

    def _environment(self):
        environment = {
            name: value for name in ("HOME", "USER", "LOGNAME", "TMPDIR", "TZ") if (value := os.getenv(name))
        }
        environment.update(LC_ALL="C", CONFIG_SITE="/dev/null", TERM="dumb")
        path = [folder for folder in os.environ["PATH"].split(":") if folder]
        linked = self._linked()
        for hash in self.node.needs("build"):
            needed = self.nodes[hash]
            if needed.name == "compiler-wrapper":
                wrapper = f"{needed.prefix}/libexec/spack/gcc"
                environment.update(CC=f"{wrapper}/gcc", CXX=f"{wrapper}/g++")
                path.insert(0, wrapper)
            elif needed.name == "gcc":
                compilers = needed.data["external"]["extra_attributes"]["compilers"]
                environment.update(SPACK_CC=compilers["c"], SPACK_CXX=compilers["cxx"])
        if self.node.data["arch"]["target"] == "x86_64":
            for language in ("CC", "CXX"):
                environment[f"SPACK_TARGET_ARGS_{language}"] = "-march=x86-64 -mtune=generic"

        def folders(*names):
            below = (f"{prefix}/{name}" for prefix in linked for name in names)
            return [folder for folder in below if os.path.isdir(folder)]

        libraries = folders("lib", "lib64")
        environment["PATH"] = ":".join(path + folders("bin"))
        environment["ACLOCAL_PATH"] = ":".join(folders("share/aclocal"))
        environment["PKG_CONFIG_PATH"] = ":".join(folders("lib/pkgconfig", "lib64/pkgconfig", "share/pkgconfig"))
        environment["SPACK_STORE_INCLUDE_DIRS"] = ":".join(folders("include"))
        environment["SPACK_STORE_LINK_DIRS"] = ":".join(libraries)
        environment["SPACK_STORE_RPATH_DIRS"] = ":".join([f"{self.prefix}/lib", *libraries])
        environment["CMAKE_PREFIX_PATH"] = ":".join(linked)
        return environment

    def _found_in_log(self):
        """The errors in the log with their lines' numbers, in the form of Spack's scanner, and where the log is."""
        lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
        hits = [number for number, line in enumerate(lines) if _ERROR.search(line)]
        text = ""
        if hits:
            text = f"{len(hits)} error{'s' if len(hits) > 1 else ''} found in build log:\n"
            around = ((max(0, hit - _CONTEXT), min(len(lines), hit + _CONTEXT + 1)) for hit in hits[:_ERRORS])
            shown = {number for first, end in around for number in range(first, end)}
            for number in sorted(shown):
                mark = ">>" if number in hits else "  "
                rows = [lines[number][at : at + 70] for at in range(0, len(lines[number]), 70)] or [""]
                text += f"  {mark} {number + 1:<5}{rows[0]}\n" + "".join(f"          {row}\n" for row in rows[1:])
            text += "\n"
        return f"{text}See build log for details:\n  {self.log_path}\n"
