# GCC out of a release archive, with what the archive has already been made with left out.

from spack_repo.builtin.packages.gcc.package import Gcc as BuiltinGcc

from spack.package import *


class Gcc(BuiltinGcc):
    __doc__ = BuiltinGcc.__doc__


# makeinfo makes the documents, which a release archive has and a package of ours has not; gawk is for Go alone, and mawk
# does for C, C++ and Fortran. Spack would build both, with a dozen libraries below them.
# (A subclass inherits the directives themselves: those that its base has are taken out here.)
for _dependencies in Gcc.dependencies.values():
    for _tool in ("texinfo", "gawk"):
        _dependencies.pop(_tool, None)
