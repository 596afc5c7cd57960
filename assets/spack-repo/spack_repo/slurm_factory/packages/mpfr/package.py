# MPFR with the configure that its release archive has.

from spack_repo.builtin.packages.mpfr.package import Mpfr as BuiltinMpfr

from spack.package import *


class Mpfr(BuiltinMpfr):
    __doc__ = BuiltinMpfr.__doc__

    # builtin makes configure anew, and needs the macros of another package for it
    force_autoreconf = False


# texinfo is for documents, which nobody reads here.
for _dependencies in Mpfr.dependencies.values():
    for _tool in ("autoconf-archive", "texinfo"):
        _dependencies.pop(_tool, None)
