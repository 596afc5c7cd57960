# What Slurm's gpu/nvml plugin is compiled against: NVIDIA's header, and a library to satisfy configure.
#
# The plugin is linked with no NVIDIA library: slurmd opens the libnvidia-ml that the node's driver brought (_get_gpu_type in
# src/interfaces/gpu.c) and the plugin finds its functions there. So CUDA, several gigabytes, is not needed: NVIDIA publishes the
# header alone, in a wheel of 120 kB. configure wants to link nvmlInit; the library here defines it for that and is in no package:
# this is a build dependency.

import zipfile

from spack_repo.builtin.build_systems.generic import Package

from spack.package import *


class NvmlHeader(Package):
    """NVIDIA Management Library: the header, and a stub to link with."""

    homepage = "https://developer.nvidia.com/management-library-nvml"

    # MIG needs 11.1; a newer header names the functions as older drivers know them.
    version(
        "12.9.79",
        sha256="8bb367913c62cb65be9ae386c58dbf573f1f9e2f01cae54abb87bf5f63c6069e",
        # the header is the same for every processor
        url="https://files.pythonhosted.org/packages/py3/n/nvidia-nvml-dev-cu12/"
        "nvidia_nvml_dev_cu12-12.9.79-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        extension="whl",
        expand=False,
    )

    depends_on("c", type="build")

    def install(self, spec, prefix):
        # where builtin's slurm looks in CUDA
        stubs = join_path(prefix.lib64, "stubs")
        mkdirp(prefix.include, stubs)
        with zipfile.ZipFile(self.stage.archive_file) as wheel:
            with open(join_path(prefix.include, "nvml.h"), "wb") as header:
                header.write(wheel.read("nvidia/nvml_dev/include/nvml.h"))
        with open("stub.c", "w", encoding="utf-8") as stream:
            stream.write("int nvmlInit(void) { return 9; }\nint nvmlInit_v2(void) { return 9; }\n")
        Executable(spack_cc)(
            "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "stub.c", "-o", "libnvidia-ml.so"
        )
        install("libnvidia-ml.so", stubs)
