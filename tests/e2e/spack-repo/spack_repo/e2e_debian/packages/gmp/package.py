# GMP without its documents.

from spack_repo.builtin.packages.gmp.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.gmp.package import Gmp as BaseGmp

from spack.package import *


class Gmp(BaseGmp):
    __doc__ = BaseGmp.__doc__

    version(
        "6.3.0",
        sha256="bd2966e6d277f79328e894a5a9f3ba3fbf2ed2be81def5f48623e30c23fb1572",
        url="file:///debian/gmp_6.3.0+dfsg.orig.tar.xz",
        extension="tar.xz",
    )

    def patch(self):
        # the folder of the documents is gone, and autoreconf looks for it
        mkdirp("doc")
        touch("doc/Makefile.am")
