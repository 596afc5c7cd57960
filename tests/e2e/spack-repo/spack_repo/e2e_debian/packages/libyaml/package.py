# libyaml from its git archive, which has no configure yet.

from spack_repo.builtin.packages.libyaml.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.libyaml.package import Libyaml as BuiltinLibyaml

from spack.package import *


class Libyaml(BuiltinLibyaml):
    __doc__ = BuiltinLibyaml.__doc__

    version(
        "0.2.5",
        sha256="fa240dbf262be053f3898006d502d514936c818e422afdcf33921c63bed9bf2e",
        url="file:///debian/libyaml_0.2.5.orig.tar.gz",
        extension="tar.gz",
    )

    for _tool in ("autoconf", "automake", "libtool", "m4"):
        depends_on(_tool, type="build")
