# What Slurm's gpu/rsmi plugin is compiled against: AMD's headers, and a library to satisfy configure.
#
# As with NVML: the plugin is linked with no library of AMD's, slurmd opens the node's librocm_smi64. Builtin's rocm-smi-lib would
# bring rocm-core, libdrm and Python to be thrown away. configure wants to link two functions; the library here defines them for
# that and is in no package: this is a build dependency.

from spack_repo.builtin.build_systems.generic import Package

from spack.package import *


class RocmSmiHeader(Package):
    """ROCm System Management Interface: the headers, and a stub to link with."""

    homepage = "https://github.com/ROCm/rocm_smi_lib"
    url = "https://github.com/ROCm/rocm_smi_lib/archive/rocm-6.2.4.tar.gz"

    license("MIT")

    # the sum is builtin's
    version("6.2.4", sha256="eb8986dd571f5862c2db693398c0dbec28e2754f764f6bd3cfb21be7699e4452")

    depends_on("c", type="build")

    def install(self, spec, prefix):
        mkdirp(prefix.lib)
        install_tree("include", prefix.include)
        with open("stub.c", "w", encoding="utf-8") as stream:
            for name in ("rsmi_init", "rsmi_dev_drm_render_minor_get"):
                stream.write(f"int {name}(void) {{ return 2; }}\n")
        Executable(spack_cc)(
            "-shared", "-fPIC", "-Wl,-soname,librocm_smi64.so.1", "stub.c", "-o", "librocm_smi64.so"
        )
        install("librocm_smi64.so", prefix.lib)
