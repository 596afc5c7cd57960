# libdbus for Slurm's cgroup/v2 plugin, which asks systemd for a scope.
#
# Builtin's recipe brings the X11 session library, glib and DocBook along: for the daemon's side and its manual. Only the
# client library is of use in a package, and no file of it may differ from build to build.

import shutil

from spack_repo.builtin.packages.dbus.package import AutotoolsBuilder as BuiltinAutotoolsBuilder
from spack_repo.builtin.packages.dbus.package import Dbus as BuiltinDbus

from spack.package import *


class Dbus(BuiltinDbus):
    __doc__ = BuiltinDbus.__doc__

    # the sum is that of the .xz archive; builtin derives an address that ends in .gz
    version(
        "1.14.10",
        sha256="ba1f21d2bd9d339da2d4aa8780c09df32fea87998b73da24f49ab9df1e36a50f",
        url="https://dbus.freedesktop.org/releases/dbus/dbus-1.14.10.tar.xz",
    )

    # meson would bring Python
    requires("build_system=autotools")

    # the host's bus, not one below this package's prefix
    variant(
        "system-socket",
        default="/run/dbus/system_bus_socket",
        description="Location for the DBus system socket",
    )


class AutotoolsBuilder(BuiltinAutotoolsBuilder):
    def configure_args(self):
        return super().configure_args() + [
            "--disable-apparmor",
            "--disable-doxygen-docs",
            "--disable-ducktype-docs",
            "--disable-libaudit",
            "--disable-selinux",
            "--disable-static",
            "--disable-tests",
            "--without-x",
        ]

    @run_after("install")
    def remove_machine_id(self):
        # builtin makes a random one, which would be the same on every machine that unpacks the package
        shutil.rmtree(self.prefix.var.lib.dbus, ignore_errors=True)


for _dependencies in Dbus.dependencies.values():
    for _unused in ("glib", "libsm", "docbook-xml", "docbook-xsl"):
        _dependencies.pop(_unused, None)
