# expat from its git archive: the sources are one folder deeper, and there is no configure yet.

from spack_repo.builtin.packages.expat.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.expat.package import AutotoolsBuilder as BuiltinAutotoolsBuilder
from spack_repo.builtin.packages.expat.package import Expat as BuiltinExpat

from spack.package import *


class Expat(BuiltinExpat):
    __doc__ = BuiltinExpat.__doc__

    version(
        "2.5.0",
        sha256="ab00ee05c7067fd10a35c5d2a4922ebba746ddd50ff83b79c828da17bbdf1757",
        url="file:///debian/expat_2.5.0.orig.tar.gz",
        extension="tar.gz",
    )

    for _tool in ("autoconf", "automake", "libtool", "m4"):
        depends_on(_tool, type="build")


class AutotoolsBuilder(BuiltinAutotoolsBuilder):
    configure_directory = "expat"
