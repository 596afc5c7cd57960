# libgcrypt 1.11.0, which builtin calls deprecated and so would not choose.

from spack_repo.builtin.packages.libgcrypt.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.libgcrypt.package import Libgcrypt as BuiltinLibgcrypt

from spack.package import *  # noqa: F403


class Libgcrypt(BuiltinLibgcrypt):
    __doc__ = BuiltinLibgcrypt.__doc__

    version("1.11.0", sha256="09120c9867ce7f2081d6aaa1775386b98c2f2f246135761aae47d81f58685b9c")  # noqa: F405
