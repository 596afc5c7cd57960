# OpenSSL 3.0 as Debian 12 has it.

from spack_repo.builtin.packages.openssl.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.openssl.package import Openssl as BuiltinOpenssl

from spack.package import *


class Openssl(BuiltinOpenssl):
    __doc__ = BuiltinOpenssl.__doc__

    version(
        "3.0.20",
        sha256="c80a01dfc70ece4dc21168932c37739042d404d46ccc81a5986dd75314ecda6f",
        url="file:///debian/openssl_3.0.20.orig.tar.gz",
        extension="tar.gz",
    )
