# Open MPI that runs from any folder, beside the Slurm that starts it.
#
# - relocatable.patch: the prefix is where the library stands, and only without its data there the configured one. OPAL_PREFIX
#   counts before both.
# - Open MPI installs wrappers for Fortran even where it is built without; they fail, so they are removed.
# - mpicc and its kin name the compiler without a folder, and no folder of the build: libmpi finds what it needs by itself.

import os
import re

from spack_repo.builtin.packages.openmpi.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.openmpi.package import Openmpi as BuiltinOpenmpi

from spack.package import *

# -L/folder, -I/folder, and a search path, which may be two words. What is written ${libdir} is no folder yet.
NAMES_A_FOLDER = re.compile(r"(?:-Wl,-rpath(?:,|=|\s+-Wl,)|-rpath\s+|-[IL])/\S*")


class Openmpi(BuiltinOpenmpi):
    __doc__ = BuiltinOpenmpi.__doc__

    variant(
        "legacylaunchers",
        default=True,
        when="@1.6:4 schedulers=slurm",
        description="Keep mpirun and mpiexec beside srun",
    )

    patch("relocatable.patch", when="@4.1")

    @run_after("install", when="build_system=autotools")
    def wrappers_without_folders(self):
        compilers = {"C": self.spec["c"].package.cc, "C++": self.spec["cxx"].package.cxx}
        if self.spec.satisfies("+fortran"):
            compilers["Fortran"] = self.spec["fortran"].package.fortran
        for path in find(join_path(self.prefix.share, "openmpi"), "*-wrapper-data.txt"):
            if os.path.islink(path):
                continue
            with open(path, encoding="utf-8") as stream:
                lines = [line.rstrip("\n") for line in stream]
            language = [line.partition("=")[2] for line in lines if line.startswith("language=")]
            with open(path, "w", encoding="utf-8") as stream:
                for line in lines:
                    name, equals, value = line.partition("=")
                    if name == "compiler" and language and language[0] in compilers:
                        value = os.path.basename(compilers[language[0]])
                    elif name.endswith(("flags", "flags_prefix", "libs", "libs_static")):
                        value = " ".join(NAMES_A_FOLDER.sub("", value).split())
                    stream.write(f"{name}{equals}{value}\n")

    @run_after("install", when="~fortran")
    def no_wrappers_of_fortran(self):
        for folder, names in (
            (self.prefix.bin, "mpif*"),
            (self.prefix.include, "mpif*.h"),
            (self.prefix.share.man.man1, "mpif*.1"),
            (self.prefix.share.openmpi, "mpif*-wrapper-data.txt"),
        ):
            for path in find(folder, names, recursive=False):
                os.remove(path)
