# GCC 14.2 as Debian's archive has it: without its documents.

from spack_repo.slurm_factory.packages.gcc.package import Gcc as BaseGcc

from spack.package import *


class Gcc(BaseGcc):
    __doc__ = BaseGcc.__doc__

    version(
        "14.2.0",
        sha256="8a4a42c41cabb37b61de3a5ef3ef62b4e10b79decfb504705b5cefa092da765f",
        url="file:///debian/gcc-14.2.0-dfsg.tar.xz",
        extension="tar.xz",
    )

    def patch(self):
        super().patch()
        # a document is checked against the sources in every build, and this one was left out of the archive
        for check, nothing in (
            ("$(RUN_GEN) build/genhooks$(build_exeext) -d", "cat"),
            ("cmp -s $(srcdir)/doc/tm.texi tm.texi", "true"),
        ):
            filter_file(check, nothing, "gcc/Makefile.in", string=True)

    def configure_args(self):
        # a test has no use for them, and they take as long as everything else that is made for the target
        unused = ("libsanitizer", "libitm", "libvtv", "libstdcxx-pch")
        return super().configure_args() + [f"--disable-{name}" for name in unused]


# a subclass inherits the directives themselves, those that its base took back included
for _dependencies in Gcc.dependencies.values():
    for _tool in ("texinfo", "gawk"):
        _dependencies.pop(_tool, None)
