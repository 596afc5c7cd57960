# curl 8.14.1, which builtin does not list.

from spack_repo.builtin.packages.curl.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.curl.package import Curl as BuiltinCurl

from spack.package import *


class Curl(BuiltinCurl):
    __doc__ = BuiltinCurl.__doc__

    version(
        "8.14.1",
        sha256="6766ada7101d292b42b8b15681120acd68effa4a9660935853cf6d61f0d984d4",
        url="file:///debian/curl_8.14.1.orig.tar.gz",
        extension="tar.gz",
    )
