# The MariaDB client library for Slurm's accounting, and nothing that it could do beside.
#
# Builtin's recipe brings Kerberos for one way to log in, curl for a plugin that fetches files, and PCRE for nothing. Ways to log in
# are compiled in here, because the library looks for its plugins at a path of the build.

from spack_repo.builtin.packages.mariadb_c_client.package import MariadbCClient as BuiltinMariadbCClient

from spack.package import *


class MariadbCClient(BuiltinMariadbCClient):
    __doc__ = BuiltinMariadbCClient.__doc__

    def cmake_args(self):
        plugins = {
            "AUTH_GSSAPI_CLIENT": "OFF",
            "CACHING_SHA2_PASSWORD": "STATIC",
            "CLIENT_ED25519": "STATIC",
            "DIALOG": "STATIC",
            "MYSQL_CLEAR_PASSWORD": "STATIC",
            "SHA256_PASSWORD": "STATIC",
            "PVIO_SHMEM": "OFF",
            "REMOTE_IO": "OFF",
            "ZSTD": "OFF",
        }
        args = super().cmake_args() + ["-DWITH_SSL=OPENSSL", "-DWITH_CURL=OFF", "-DWITH_UNIT_TESTS=OFF"]
        return args + [f"-DCLIENT_PLUGIN_{name}={kind}" for name, kind in plugins.items()]


for _dependencies in MariadbCClient.dependencies.values():
    for _unused in ("curl", "krb5", "pcre"):
        _dependencies.pop(_unused, None)
