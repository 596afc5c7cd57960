# Lua for Slurm's plugins: the library and its headers, nothing else.
#
# Slurm opens liblua by name when a Lua plugin is used. Builtin's recipe makes an interpreter too, fetches LuaRocks, and so
# needs readline, unzip and curl at run time: a package manager has no place in a Slurm package. Written from scratch, as
# there would be less left of builtin's than added to it.

import os

from spack_repo.builtin.build_systems.makefile import MakefilePackage

from spack.package import *

_PKG_CONFIG = """\
prefix=${{pcfiledir}}/../..
libdir=${{prefix}}/lib
includedir=${{prefix}}/include

Name: Lua
Description: The Lua programming language
Version: {version}
Libs: -L${{libdir}} -llua -lm -ldl
Cflags: -I${{includedir}}
"""


class Lua(MakefilePackage):
    """The Lua programming language's library."""

    homepage = "https://www.lua.org"
    url = "https://www.lua.org/ftp/lua-5.3.6.tar.gz"

    license("MIT")

    version("5.4.6", sha256="7d5ea1b9cb6aa0b59ca3dde1c6adcb57ef83a1ba8e5432c0ecd06bf439b3ad88")
    version("5.3.6", sha256="fc5fd69bb8736323f026672b1b7235da613d7177e72558893a0bdcd320466d60")

    depends_on("c", type="build")
    depends_on("gmake", type="build")

    def build(self, spec, prefix):
        series = self.version.up_to(2)
        with working_dir("src"):
            make("a", f"CC={spack_cc} -std=gnu99 -fPIC", "SYSCFLAGS=-DLUA_USE_LINUX")
            # the archive holds the library's objects only; the programs' are not made
            Executable(spack_cc)(
                "-shared",
                f"-Wl,-soname,liblua.so.{series}",
                "-Wl,--whole-archive",
                "liblua.a",
                "-Wl,--no-whole-archive",
                "-lm",
                "-ldl",
                "-o",
                f"liblua.so.{self.version}",
            )

    def install(self, spec, prefix):
        series = self.version.up_to(2)
        mkdirp(prefix.include, prefix.lib.pkgconfig)
        with working_dir("src"):
            for header in ("lua.h", "luaconf.h", "lualib.h", "lauxlib.h", "lua.hpp"):
                install(header, prefix.include)
            install(f"liblua.so.{self.version}", prefix.lib)
        for link in (f"liblua.so.{series}", "liblua.so"):
            os.symlink(f"liblua.so.{self.version}", join_path(prefix.lib, link))
        with open(join_path(prefix.lib.pkgconfig, "lua.pc"), "w", encoding="utf-8") as stream:
            stream.write(_PKG_CONFIG.format(version=self.version))
