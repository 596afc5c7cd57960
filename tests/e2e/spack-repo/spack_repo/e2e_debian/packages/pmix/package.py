# PMIx as Debian repacks it: without configure and without what flex makes.

from spack_repo.builtin.packages.pmix.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.pmix.package import Pmix as BuiltinPmix

from spack.package import *


class Pmix(BuiltinPmix):
    __doc__ = BuiltinPmix.__doc__

    version(
        "4.2.2",
        sha256="4a534a8f87220c6f0d1b4b3195820f585ffaf3ceb8e21e40460d58439b81d47b",
        url="file:///debian/pmix_4.2.2.orig.tar.xz",
        extension="tar.xz",
    )

    for _tool in ("autoconf", "automake", "flex", "libtool", "m4", "perl"):
        depends_on(_tool, type="build")

    def patch(self):
        # what Debian calls 4.2.2 is a release candidate, in which this file lacks a header
        filter_file(
            '#include "src/mca/pinstalldirs/pinstalldirs.h"',
            '#include "src/mca/base/pmix_mca_base_vari.h"\n#include "src/mca/pinstalldirs/pinstalldirs.h"',
            "src/mca/base/pmix_mca_base_var.c",
            string=True,
        )
