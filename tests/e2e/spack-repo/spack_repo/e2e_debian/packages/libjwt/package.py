# libjwt as Debian repacks it: without its base64 code, which is replaced by our own.

from spack_repo.builtin.packages.libjwt.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.libjwt.package import Libjwt as BuiltinLibjwt

from spack.package import *


class Libjwt(BuiltinLibjwt):
    __doc__ = BuiltinLibjwt.__doc__

    version(
        "1.17.2",
        sha256="8d52fceba532317359eca8e920c6186577aed45504f47a9be0a13c70ef8586cc",
        url="file:///debian/libjwt_1.17.2.orig.tar.xz",
        extension="tar.xz",
    )

    @run_before("autoreconf")
    def add_base64(self):
        for name in ("base64.c", "base64.h"):
            install(join_path(self.package_dir, name), join_path(self.stage.source_path, "libjwt"))
