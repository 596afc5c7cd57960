# Slurm for packages that run from any folder: the builtin recipe, and what it leaves open closed.
#
# - Versions come from versions.json beside this file, written by slurm-factory from its catalog; none is listed here.
# - relocatable.patch makes Slurm find its plugins and slurmstepd from where it stands.
# - Every library that configure would look for on the machine is either a declared dependency or switched off, so that
#   what a build contains never depends on what its base image happens to hold.
# - glib is not taken: Slurm itself uses it only below GTK, and it would bring Python and Perl along at run time.

import json
import os

from spack_repo.builtin.packages.slurm.package import Slurm as BuiltinSlurm

from spack.package import *


def _catalog_versions():
    """The versions that the catalog names: [{"version", "sha256", "url", "extension"?}, ...]."""
    path = os.path.join(os.path.dirname(__file__), "versions.json")
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)["versions"]


class Slurm(BuiltinSlurm):
    __doc__ = BuiltinSlurm.__doc__

    for _entry in _catalog_versions():
        version(
            _entry["version"],
            sha256=_entry["sha256"],
            url=_entry["url"],
            extension=_entry.get("extension"),
        )

    variant("lua", default=True, description="Build the Lua plugins (job_submit, cli_filter)")

    # The same variants as builtin's, with the defaults of a package for clusters.
    variant("hwloc", default=True, description="Enable hwloc support")
    variant("pmix", default=True, description="Enable PMIx support")
    variant("restd", default=True, description="Enable slurmrestd")
    variant("jwt", default=True, description="Enable tokens: auth/jwt and auth/slurm")
    variant("cgroup", default=True, description="Enable the cgroup/v2 plugin")
    variant("pam", default=True, description="Enable PAM support and its modules")
    variant("mariadb", default=False, description="Build the accounting storage of slurmdbd")
    variant(
        "sysconfdir",
        default="/etc/slurm",
        values=any,
        description="Set system configuration path, absolute",
    )

    patch("relocatable.patch", when="@22-05:")

    depends_on("lua@5.3:", when="+lua")
    depends_on("numactl")
    depends_on("ncurses")
    # The client library only; builtin takes the whole server.
    depends_on("mariadb-c-client", when="+mariadb")
    depends_on("libjwt", when="+jwt")
    # Headers only; builtin takes CUDA and ROCm, and says nothing about where they come from.
    depends_on("nvml-header", type="build", when="+nvml")
    depends_on("rocm-smi-header", type="build", when="+rsmi")

    conflicts("~jwt", when="+restd", msg="slurm_factory: slurmrestd is built with JWT")
    conflicts("@:22-04", msg="slurm_factory: relocatable.patch is for Slurm 22.05 and later")

    @run_before("configure")
    def make_pam_folder(self):
        # configure takes --with-pam_dir only when the folder is there
        if self.spec.satisfies("+pam"):
            mkdirp(self._pam_dir)

    @property
    def _pam_dir(self):
        return join_path(self.prefix.lib, "security")

    def configure_args(self):
        spec = self.spec
        # Written out and not added to builtin's: that asks for CUDA's and ROCm's prefixes, names Linux-PAM's as the place for
        # Slurm's modules, and gives curl a path, with which Slurm does not build what needs it (jobcomp/elasticsearch, influxdb
        # profiles); without one it is found in PATH.
        args = [
            f"--sysconfdir={spec.variants['sysconfdir'].value}",
            f"--with-json={spec['json-c'].prefix}",
            "--with-libcurl",
            f"--with-lz4={spec['lz4'].prefix}",
            f"--with-munge={spec['munge'].prefix}",
            f"--with-ssl={spec['openssl'].prefix}",
            f"--with-zlib={spec['zlib-api'].prefix}",
        ]

        def choose(variant, name, package=None):
            if spec.satisfies(f"~{variant}"):
                args.append(f"--without-{name}")
            elif package:
                args.append(f"--with-{name}={spec[package].prefix}")
            else:
                args.append(f"--with-{name}")

        choose("hwloc", "hwloc", "hwloc")
        choose("jwt", "jwt", "libjwt")
        choose("lua", "lua")
        choose("nvml", "nvml", "nvml-header")
        choose("pmix", "pmix", "pmix")
        choose("readline", "readline")
        choose("restd", "http-parser", "http-parser")
        choose("restd", "yaml", "libyaml")
        choose("rsmi", "rsmi", "rocm-smi-header")
        args.append("--enable-slurmrestd" if spec.satisfies("+restd") else "--disable-slurmrestd")
        if spec.satisfies("+hdf5"):
            args.append(f"--with-hdf5={spec['hdf5'].prefix.bin.h5cc}")
        else:
            args.append("--without-hdf5")
        if spec.satisfies("+pam"):
            args += ["--enable-pam", f"--with-pam_dir={self._pam_dir}"]
        else:
            args.append("--disable-pam")
        if spec.satisfies("+mariadb"):
            args.append(f"--with-mysql_config={spec['mariadb-c-client'].prefix.bin}")
        else:
            args.append("--with-mysql_config=no")
        if spec.satisfies("~gtk"):
            args += ["--disable-gtktest", "--disable-sview"]
        args += [
            f"--without-{name}"
            for name in ("freeipmi", "hpe-slingshot", "ofed", "oneapi", "rdkafka", "s2n", "ucx")
        ]
        args += ["--disable-selinux", "--without-systemdsystemunitdir"]
        return args

    def install(self, spec, prefix):
        super().install(spec, prefix)
        make("-C", "contribs/pmi", "install")
        make("-C", "contribs/nss_slurm", "install")
        if spec.satisfies("+pam"):
            make("-C", "contribs/pam", "install")
            make("-C", "contribs/pam_slurm_adopt", "install")
        self._check_features()

    def _check_features(self):
        # For some features configure only warns when what it looks for does not link, and goes on without.
        wanted = {
            "cgroup": "lib/slurm/cgroup_v2.so",
            "hdf5": "lib/slurm/acct_gather_profile_hdf5.so",
            "jwt": "lib/slurm/auth_jwt.so",
            "lua": "lib/slurm/job_submit_lua.so",
            "mariadb": "lib/slurm/accounting_storage_mysql.so",
            "nvml": "lib/slurm/gpu_nvml.so",
            "pam": "lib/security/pam_slurm_adopt.so",
            "pmix": "lib/slurm/mpi_pmix.so",
            "restd": "sbin/slurmrestd",
            "rsmi": "lib/slurm/gpu_rsmi.so",
        }
        for variant, path in wanted.items():
            if self.spec.satisfies(f"+{variant}") and not os.path.exists(join_path(self.prefix, path)):
                raise InstallError(f"+{variant} was asked for, and configure went on without it: no {path}; see config.log")


for _dependencies in Slurm.dependencies.values():
    for _unused in ("cuda", "glib", "mariadb", "rocm-smi-lib"):
        _dependencies.pop(_unused, None)
