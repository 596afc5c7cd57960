# MariaDB's client library out of MariaDB's own sources: Debian has no archive of the library alone.

from spack_repo.slurm_factory.packages.mariadb_c_client.package import MariadbCClient as FactoryMariadbCClient

from spack.package import *


class MariadbCClient(FactoryMariadbCClient):
    __doc__ = FactoryMariadbCClient.__doc__

    version(
        "3.3.19",
        sha256="a46852c68075be7c31c7b33fee233c5b5a00c8c28117f5204d124e4f2fd56fa8",
        url="file:///debian/mariadb_10.11.18.orig.tar.gz",
        extension="tar.gz",
    )

    root_cmakelists_dir = "libmariadb"

    # The base would ask for the release archive of its own.
    def url_for_version(self, version):
        return "file:///debian/mariadb_10.11.18.orig.tar.gz"


# a subclass inherits the directives themselves, those that its base took back included
for _dependencies in MariadbCClient.dependencies.values():
    for _unused in ("curl", "krb5", "pcre"):
        _dependencies.pop(_unused, None)
