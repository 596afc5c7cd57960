# binutils 2.44 as Debian packs it: without the documents that a release archive has made already.

from spack_repo.builtin.packages.binutils.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.builtin.packages.binutils.package import AutotoolsBuilder as BaseAutotoolsBuilder
from spack_repo.builtin.packages.binutils.package import Binutils as BaseBinutils

from spack.package import *


class Binutils(BaseBinutils):
    __doc__ = BaseBinutils.__doc__

    version(
        "2.44",
        sha256="c41a0272424f41bb01bf828e7ffef1b2d59d1788064fd6b5f1d971717e9320b8",
        url="file:///debian/binutils_2.44.orig.tar.xz",
        extension="tar.xz",
    )


class AutotoolsBuilder(BaseAutotoolsBuilder):
    # configure puts `missing makeinfo` in the place of one that it does not know
    build_targets = ["MAKEINFO=true"]
    install_targets = ["install", "MAKEINFO=true"]
