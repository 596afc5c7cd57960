# pkgconf 1.8.1, which builtin does not list with this sum.

from spack_repo.builtin.packages.pkgconf.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.pkgconf.package import Pkgconf as BuiltinPkgconf

from spack.package import *


class Pkgconf(BuiltinPkgconf):
    __doc__ = BuiltinPkgconf.__doc__

    version(
        "1.8.1",
        sha256="644361ada2942be05655d4452eb018791647c31bba429b287f1f68deb2dc6840",
        url="file:///debian/pkgconf_1.8.1.orig.tar.xz",
        extension="tar.xz",
    )
