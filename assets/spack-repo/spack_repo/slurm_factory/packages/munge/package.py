# MUNGE whose daemon and library use the host's usual places: /etc/munge, /run/munge, /var/lib/munge, /var/log/munge.
#
# Builtin's recipe compiles its prefix in as the place of key, socket and log: a package that is unpacked elsewhere would
# look for them in a folder that does not exist, and could not talk to the munged that a host already runs.
# One cryptographic library is enough: OpenSSL, which Slurm takes anyway, and not libgcrypt beside it.

from spack_repo.builtin.packages.munge.package import Munge as BuiltinMunge

from spack.package import *


class Munge(BuiltinMunge):
    __doc__ = BuiltinMunge.__doc__

    variant("localstatedir", default="/var", values=any, description="Set local state path")

    @run_before("configure")
    def accept_lib64(self):
        # configure takes an OpenSSL prefix only if it has a folder lib; ours has lib64. The compiler wrapper knows both.
        filter_file(r'test -d "\$d/lib" \|\| continue', ":", "configure")

    def configure_args(self):
        return super().configure_args() + [
            "--sysconfdir=/etc",
            "--with-runstatedir=/run",
            "--with-crypto-lib=openssl",
            # its own search takes only installations with a "lib", openssl has "lib64": Spack's compiler knows the place
            "--with-openssl-prefix=no",
            "OPENSSL_LIBS=-lcrypto",
            "--disable-static",
            "--without-logrotateddir",
            "--without-systemdunitdir",
            "--without-sysvinitddir",
        ]

    def install(self, spec, prefix):
        # what is compiled in stays; only where "make install" makes folders changes, as /etc is not ours to write to
        make(
            "install",
            f"sysconfdir={prefix.etc}",
            f"localstatedir={prefix.var}",
            f"runstatedir={prefix.var.run}",
        )


for _dependencies in Munge.dependencies.values():
    _dependencies.pop("libgcrypt", None)
