# munge from its git archive, which has no configure yet.

from spack_repo.slurm_factory.packages.munge.package import Munge as FactoryMunge

from spack.package import *


class Munge(FactoryMunge):
    __doc__ = FactoryMunge.__doc__

    version(
        "0.5.16",
        sha256="fa27205d6d29ce015b0d967df8f3421067d7058878e75d0d5ec3d91f4d32bb57",
        url="file:///debian/munge_0.5.16.orig.tar.gz",
        extension="tar.gz",
    )

    for _tool in ("autoconf", "automake", "libtool", "m4"):
        depends_on(_tool, type="build")


# a subclass inherits the directives themselves, those that its base took back included
for _dependencies in Munge.dependencies.values():
    _dependencies.pop("libgcrypt", None)
