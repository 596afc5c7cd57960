"""The packages that the stand-in builds: versions with their sums, variants, dependencies, and how each is built.

The set is the smallest with which Slurm has munge authentication and JSON, and nothing that it loads comes from outside
the view. Sums are those of Debian's source archives (tests/e2e/debian-sources.tsv; a test compares them). Variants have
the names and defaults of the real recipes, so that a request means the same; `can` lists the values that are possible
here, and any other is an error.
"""

from dataclasses import dataclass, field

ANY = None  # a variant that takes every value


@dataclass(frozen=True)
class Variant:
    """A variant: its default in the real recipe, and the values that the stand-in can build."""

    default: object
    can: tuple | None


@dataclass(frozen=True)
class Needs:
    """A dependency."""

    name: str
    types: tuple
    virtuals: tuple = ()


@dataclass(frozen=True)
class Recipe:
    """A package. `phases` are pairs of a name and a function that takes a `build.Build`."""

    name: str
    build_system: str
    versions: dict = field(default_factory=dict)  # version -> (sum, extension)
    variants: dict = field(default_factory=dict)
    needs: tuple = ()
    phases: tuple = ()
    patches: tuple = ()  # file names in the recipe's folder of a repository
    versions_file: bool = False  # versions.json in that folder has the versions


def _c(*extra, cxx=False, libraries=()):
    """What every package written in C needs, as Spack adds it by itself, and more."""
    return (
        Needs("compiler-wrapper", ("build",)),
        Needs("gcc", ("build",), ("c", "cxx") if cxx else ("c",)),
        Needs("gcc-runtime", ("link",)),
        Needs("glibc", ("link",), ("libc",)),
        Needs("gmake", ("build",)),
        *(Needs(name, ("build",)) for name in extra),
        *(Needs(name, ("build", "link")) for name in libraries),
    )


def _nothing(_):
    """A phase that real Spack has and that has nothing to do here."""


def _make(build):
    build.make()


def _make_install(build):
    build.make("install")


def _configure(*arguments, quick=()):
    """A configure phase with the real recipe's arguments, and `quick` ones that only save time."""

    def phase(build):
        build.configure_arguments = arguments
        build.run("./configure", f"--prefix={build.prefix}", *arguments, *quick)

    return phase


# --- the compiler's own -------------------------------------------------------------------------------------


def _install_wrapper(build):
    build.install_wrapper()


_RUNTIME = ("asan", "atomic", "gcc_s", "gomp", "itm", "lsan", "quadmath", "stdc++", "tsan", "ubsan")


def _install_runtime(build):
    build.install_gcc_runtime(_RUNTIME)


def _install_gcc(build):
    programs = ("gcc", "g++", "cpp", "gfortran", "gcc-ar", "gcc-nm", "gcc-ranlib", "gcov")
    tools = ("as", "ld", "ld.bfd", "ar", "nm", "objcopy", "objdump", "ranlib", "readelf", "strip")
    build.install_gcc(programs, tools, ("gfortran", *_RUNTIME))


# --- libraries ----------------------------------------------------------------------------------------------


def _lz4_build(build):
    build.make("MOREFLAGS=-lrt", CFLAGS="-fPIC -O1")


def _lz4_install(build):
    build.make("install", f"PREFIX={build.prefix}", "BUILD_SHARED=yes", "BUILD_STATIC=yes", CFLAGS="-fPIC -O1")


def _zlib_configure(build):
    build.run("./configure", f"--prefix={build.prefix}", CFLAGS="-fPIC -O2")


def _cmake(build):
    build.run(
        "cmake",
        "-G",
        "Unix Makefiles",
        f"-DCMAKE_INSTALL_PREFIX:STRING={build.prefix}",
        "-DCMAKE_BUILD_TYPE:STRING=Release",
        "-DBUILD_TESTING:BOOL=OFF",
        f"-DCMAKE_INSTALL_RPATH:STRING={build.prefix}/lib;{build.prefix}/lib64",
        "-DCMAKE_INSTALL_RPATH_USE_LINK_PATH:BOOL=ON",
        "-DDISABLE_WERROR:BOOL=ON",
        "-DBUILD_APPS:BOOL=OFF",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS:BOOL=ON",
        "-B",
        str(build.cmake_folder),
        ".",
    )


def _cmake_build(build):
    build.make("-C", str(build.cmake_folder))


def _cmake_install(build):
    build.make("-C", str(build.cmake_folder), "install")


_LIBGPG_ERROR = ("--enable-static", "--enable-shared", "--disable-tests", "--enable-install-gpg-error-config")

# munge names only these, and libgcrypt does not link without ecc, blake2 and sha3; the rest would cost a minute.
_LIBGCRYPT = (
    "--disable-asm",
    "--disable-doc",
    "--disable-static",
    "--enable-ciphers=aes blowfish cast5",
    "--enable-digests=blake2 md5 rmd160 sha1 sha256 sha3 sha512",
    "--enable-pubkey-ciphers=ecc rsa",
)

# Everything but its tests and documentation.
_LIBGCRYPT_FOLDERS = "SUBDIRS=compat mpi cipher random src"


def _libgcrypt_make(build):
    build.make(_LIBGCRYPT_FOLDERS)


def _libgcrypt_install(build):
    build.make(_LIBGCRYPT_FOLDERS, "install")


# --- munge --------------------------------------------------------------------------------------------------


def _munge_autoreconf(build):
    build.run("autoreconf", "--install", "--force")


def _munge_install(build):
    # As in slurm-factory's own recipe: what is compiled in stays, /etc is not ours to write to.
    (build.prefix / "lib/systemd/system").mkdir(parents=True)
    build.make(
        "install",
        f"sysconfdir={build.prefix}/etc",
        f"localstatedir={build.prefix}/var",
        f"runstatedir={build.prefix}/var/run",
    )


# --- Slurm --------------------------------------------------------------------------------------------------


def _slurm_configure(build):
    arguments = [f"--with-{option}={build.dependency(name)}" for option, name in _SLURM_LIBRARIES.items()]
    if (folder := build.variants["sysconfdir"]) != "PREFIX/etc":
        arguments.append(f"--sysconfdir={folder}")
    arguments += [f"--without-{name}" for name in _SLURM_WITHOUT]
    # Without static archives libtool does not compile every file twice.
    _configure(*arguments, *_SLURM_DISABLED, quick=("--disable-static",))(build)


def _slurm_install(build):
    build.make("install")
    for contribution in ("pmi2", "pmi", "nss_slurm"):
        build.make("-C", f"contribs/{contribution}", "install")


_SLURM_LIBRARIES = {"json": "json-c", "lz4": "lz4", "munge": "munge"}
_SLURM_WITHOUT = (
    "libcurl readline hdf5 hwloc pmix yaml lua http-parser jwt nvml rsmi freeipmi hpe-slingshot ofed oneapi rdkafka "
    "s2n ucx systemdsystemunitdir"
).split()
_SLURM_DISABLED = (
    "--disable-gtktest",
    "--disable-slurmrestd",
    "--disable-pam",
    "--disable-sview",
    "--disable-selinux",
    "--with-mysql_config=no",
)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "compiler-wrapper",
            "generic",
            versions={"1.0": None},
            phases=(("install", _install_wrapper),),
        ),
        Recipe(
            "gcc-runtime",
            "generic",
            # Its version is that of the compiler.
            needs=(Needs("gcc", ("build",)), Needs("glibc", ("link",), ("libc",))),
            phases=(("install", _install_runtime),),
        ),
        Recipe(
            "gcc",
            "generic",
            # A copy of the GCC that is there, whatever its version: to build one takes hours.
            versions={"14.2.0": None, "13.4.0": None},
            variants={
                "binutils": Variant(False, (True,)),
                "bootstrap": Variant(True, (True, False)),
                "build_type": Variant("RelWithDebInfo", ("RelWithDebInfo", "MinSizeRel")),
                "languages": Variant(["c", "c++", "fortran"], (["c", "c++", "fortran"],)),
                "strip": Variant(False, (True,)),
            },
            needs=_c(cxx=True),
            phases=(("install", _install_gcc),),
        ),
        Recipe(
            "lz4",
            "makefile",
            versions={"1.10.0": ("537512904744b35e232912055ccf8ec66d768639ff3abe5788d90d792ec5f48b", "tar.gz")},
            variants={"pic": Variant(True, (True,)), "libs": Variant(["shared", "static"], (["shared", "static"],))},
            needs=_c(cxx=True),
            phases=(("edit", _nothing), ("build", _lz4_build), ("install", _lz4_install)),
        ),
        Recipe(
            "zlib",
            "makefile",
            versions={"1.3.1": ("60dd315c07f616887caa029408308a018ace66e3d142726a97db164b3b8f69fb", "tar.gz")},
            variants={name: Variant(True, (True,)) for name in ("optimize", "pic", "shared")},
            needs=_c(cxx=True),
            phases=(("edit", _zlib_configure), ("build", _make), ("install", _make_install)),
        ),
        Recipe(
            "json-c",
            "cmake",
            versions={"0.16": ("3ecaeedffd99a60b1262819f9e60d7d983844073abc74e495cb822b251904185", "tar.gz")},
            variants={
                "build_type": Variant("Release", ("Release",)),
                "generator": Variant("make", ("make",)),
                "ipo": Variant(False, (False,)),
            },
            needs=_c("cmake"),
            phases=(("cmake", _cmake), ("build", _cmake_build), ("install", _cmake_install)),
        ),
        Recipe(
            "libgpg-error",
            "autotools",
            versions={"1.51": ("be0f1b2db6b93eed55369cdf79f19f72750c8c7c39fc20b577e724545427e6b2", "tar.bz2")},
            needs=(*_c(), Needs("mawk", ("build",), ("awk",))),
            phases=(
                ("autoreconf", _nothing),
                (
                    "configure",
                    _configure(*_LIBGPG_ERROR, quick=("--disable-nls", "--disable-doc", "--disable-languages")),
                ),
                ("build", _make),
                ("install", _make_install),
            ),
        ),
        Recipe(
            "libgcrypt",
            "autotools",
            versions={"1.11.0": ("09120c9867ce7f2081d6aaa1775386b98c2f2f246135761aae47d81f58685b9c", "tar.bz2")},
            needs=_c(libraries=("libgpg-error",)),
            phases=(
                ("autoreconf", _nothing),
                ("configure", _configure(quick=_LIBGCRYPT)),
                ("build", _libgcrypt_make),
                ("install", _libgcrypt_install),
            ),
        ),
        Recipe(
            "munge",
            "autotools",
            versions={"0.5.16": ("fa27205d6d29ce015b0d967df8f3421067d7058878e75d0d5ec3d91f4d32bb57", "tar.gz")},
            variants={"localstatedir": Variant("/var", ("/var",))},
            needs=_c("autoconf", "automake", "libtool", "m4", libraries=("libgcrypt",)),
            phases=(
                ("autoreconf", _munge_autoreconf),
                (
                    "configure",
                    _configure(
                        "--localstatedir=/var",
                        "--sysconfdir=/etc",
                        "--with-runstatedir=/run",
                        "--with-crypto-lib=libgcrypt",
                        "--disable-static",
                        "--without-logrotateddir",
                        "--without-systemdunitdir",
                        "--without-sysvinitddir",
                    ),
                ),
                ("build", _make),
                ("install", _munge_install),
            ),
        ),
        Recipe(
            "slurm",
            "autotools",
            variants={
                **{name: Variant(True, (False,)) for name in "cgroup hwloc jwt lua pam pmix readline restd".split()},
                **{name: Variant(False, (False,)) for name in "gtk hdf5 mariadb nvml rsmi".split()},
                "sysconfdir": Variant("/etc/slurm", ANY),
            },
            needs=(
                *_c(libraries=("json-c", "lz4", "munge")),
                Needs("zlib", ("build", "link"), ("zlib-api",)),
            ),
            phases=(
                ("autoreconf", _nothing),
                ("configure", _slurm_configure),
                ("build", _make),
                ("install", _slurm_install),
            ),
            patches=("relocatable.patch",),
            versions_file=True,
        ),
    )
}

# Taken from /usr, as `packages:` says; glibc is found there as Spack finds it.
EXTERNAL = ("gcc", "glibc", "gmake", "cmake", "autoconf", "automake", "libtool", "m4", "mawk")
# The only choice for each virtual package.
PROVIDERS = {"awk": "mawk", "zlib-api": "zlib"}
