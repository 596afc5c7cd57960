# MPFR 4.2.2 has in it the patches that builtin fetches for 4.2.1.

from spack_repo.slurm_factory.packages.mpfr.package import Mpfr as BaseMpfr

from spack.package import *


class Mpfr(BaseMpfr):
    __doc__ = BaseMpfr.__doc__

    version(
        "4.2.2",
        sha256="b67ba0383ef7e8a8563734e2e889ef5ec3c3b898a01d00fa0a6869ad81c6ce01",
        url="file:///debian/mpfr4_4.2.2.orig.tar.xz",
        extension="tar.xz",
    )


# a subclass inherits the directives themselves, those that its base took back included
for _dependencies in Mpfr.dependencies.values():
    for _tool in ("autoconf-archive", "texinfo"):
        _dependencies.pop(_tool, None)
