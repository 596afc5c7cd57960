# hwloc 2.9.0: builtin's has the sum of the gzip archive.

from spack_repo.builtin.packages.hwloc.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.hwloc.package import Hwloc as BuiltinHwloc

from spack.package import *


class Hwloc(BuiltinHwloc):
    __doc__ = BuiltinHwloc.__doc__

    version(
        "2.9.0",
        sha256="b3fb1a43a14d8fbcd8e976de5ede2ea7ce1d768ed173adb33c7ceaaf098dc970",
        url="file:///debian/hwloc_2.9.0.orig.tar.bz2",
        extension="tar.bz2",
    )
