# json-c from its git archive: builtin's 0.16 has the release archive's sum.

from spack_repo.builtin.packages.json_c.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.json_c.package import JsonC as BuiltinJsonC

from spack.package import *


class JsonC(BuiltinJsonC):
    __doc__ = BuiltinJsonC.__doc__

    version(
        "0.16",
        sha256="3ecaeedffd99a60b1262819f9e60d7d983844073abc74e495cb822b251904185",
        url="file:///debian/json-c_0.16.orig.tar.gz",
        extension="tar.gz",
    )
