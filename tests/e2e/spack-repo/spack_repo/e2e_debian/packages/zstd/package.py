# zstd without its documents.

from spack_repo.builtin.packages.zstd.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.zstd.package import Zstd as BaseZstd

from spack.package import *


class Zstd(BaseZstd):
    __doc__ = BaseZstd.__doc__

    version(
        "1.5.7",
        sha256="0c092ef267edce57ba7f3f2645c861f72eaf5e76273c6c3632869423464b90a5",
        url="file:///debian/libzstd_1.5.7+dfsg.orig.tar.xz",
        extension="tar.xz",
    )
