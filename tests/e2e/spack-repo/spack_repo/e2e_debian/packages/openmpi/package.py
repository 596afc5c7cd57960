# Open MPI 4.1.4 as Debian repacks it: without the libraries that come inside, which are not taken.

from spack_repo.slurm_factory.packages.openmpi.package import *  # noqa: F401,F403  (with its builders)
from spack_repo.slurm_factory.packages.openmpi.package import Openmpi as FactoryOpenmpi

from spack.package import *


class Openmpi(FactoryOpenmpi):
    __doc__ = FactoryOpenmpi.__doc__

    version(
        "4.1.4",
        sha256="ddaee7dbdb01eb4fab1fda5b5e03e8bbff026711806c095c1f39bb410f99f263",
        url="file:///debian/openmpi_4.1.4.orig.tar.xz",
        extension="tar.xz",
    )


# A mend of 4.1.5's (reductions of unsigned long), which builtin fetches from a site that is no package registry.
for _patches in Openmpi.patches.values():
    _patches[:] = [_patch for _patch in _patches if not getattr(_patch, "url", None)]
