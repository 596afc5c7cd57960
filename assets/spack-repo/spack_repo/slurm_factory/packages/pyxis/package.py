# NVIDIA's SPANK plugin for containers. Not in builtin.
#
# The archive that the project's host makes of a tag has no sum of its own that would last, so a commit is named. enroot, which it
# starts on the node, is a privileged part of the host and not of this package.

from spack_repo.builtin.build_systems.makefile import MakefilePackage

from spack.package import *


class Pyxis(MakefilePackage):
    """Container plugin for Slurm: srun --container-image."""

    homepage = "https://github.com/NVIDIA/pyxis"
    git = "https://github.com/NVIDIA/pyxis.git"

    license("Apache-2.0")

    version("0.21.0", commit="c908f63181e78d6b71a30d71f816009a8709c917")

    depends_on("c", type="build")
    depends_on("gmake", type="build")
    depends_on("slurm@22-05:")

    def install(self, spec, prefix):
        make("install", f"prefix={prefix}", f"libdir={prefix.lib}")
        # plugstack.conf takes the plugin's name without a folder: slurmd looks in its own plugin folder, wherever that is
        with open(join_path(prefix.share.pyxis, "pyxis.conf"), "w", encoding="utf-8") as stream:
            stream.write("required spank_pyxis.so\n")
