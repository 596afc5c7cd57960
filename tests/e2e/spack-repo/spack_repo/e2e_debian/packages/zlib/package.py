# zlib as Debian repacks it: builtin's 1.3.1 has the release archive's sum.

from spack_repo.builtin.packages.zlib.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.zlib.package import Zlib as BuiltinZlib

from spack.package import *


class Zlib(BuiltinZlib):
    __doc__ = BuiltinZlib.__doc__

    version(
        "1.3.1",
        sha256="60dd315c07f616887caa029408308a018ace66e3d142726a97db164b3b8f69fb",
        url="file:///debian/zlib_1.3.dfsg+really1.3.1.orig.tar.gz",
        extension="tar.gz",
    )
