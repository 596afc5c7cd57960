# libpam to build Slurm's PAM modules against.
#
# At run time they are loaded by programs of the host, with the host's own libpam. So the modules that log users in, and
# the libraries that only those need (libtirpc with Kerberos below it, libxcrypt), are left out.

from spack_repo.builtin.packages.linux_pam.package import LinuxPam as BuiltinLinuxPam

from spack.package import *


class LinuxPam(BuiltinLinuxPam):
    __doc__ = BuiltinLinuxPam.__doc__

    variant("unix", default=False, description="Build pam_unix model")

    def configure_args(self):
        return super().configure_args() + [
            "--disable-audit",
            "--disable-db",
            "--disable-doc",
            "--disable-econf",
            "--disable-nis",
        ]


for _dependencies in LinuxPam.dependencies.values():
    for _unused in ("libtirpc", "libxcrypt"):
        _dependencies.pop(_unused, None)
