# ncurses that reads the host's terminal descriptions.
#
# Builtin's recipe installs its own 2,800 and compiles their place in: in a moved tree they are not found, and line editing
# in scontrol and sacctmgr falls back to a dumb terminal. Every host has them.
#
# Builtin's options are a list inside a method; autoconf's site file adds to them without copying it.

from spack_repo.builtin.packages.ncurses.package import Ncurses as BuiltinNcurses

from spack.package import *


class Ncurses(BuiltinNcurses):
    __doc__ = BuiltinNcurses.__doc__

    def setup_build_environment(self, env: EnvironmentModifications) -> None:
        super().setup_build_environment(env)
        env.set("CONFIG_SITE", join_path(self.package_dir, "config.site"))
