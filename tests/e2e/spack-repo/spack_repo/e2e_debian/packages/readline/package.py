# readline 8.2 as released: builtin's thirteen patches of it are fetched from the network, one by one.

from spack_repo.builtin.packages.readline.package import Readline as BuiltinReadline


class Readline(BuiltinReadline):
    __doc__ = BuiltinReadline.__doc__


Readline.patches.clear()
