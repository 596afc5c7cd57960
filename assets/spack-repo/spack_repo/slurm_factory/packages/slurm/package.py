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
    variant("restd", default=True, description="Enable slurmrestd and JWT authentication")
    variant("cgroup", default=True, description="Enable the cgroup/v2 plugin")
    variant("pam", default=True, description="Enable PAM support and its modules")
    variant("mariadb", default=False, description="Build the accounting storage of slurmdbd")
    variant(
        "sysconfdir",
        default="/etc/slurm",
        values=any,
        description="Set system configuration path",
    )

    patch("relocatable.patch", when="@22-05:")

    depends_on("lua@5.3:", when="+lua")
    depends_on("numactl")
    depends_on("ncurses")
    # The client library only; builtin takes the whole server.
    depends_on("mariadb-c-client", when="+mariadb")

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
        # Of builtin's: it names Linux-PAM's own prefix as the place for Slurm's modules; and Slurm builds what needs curl
        # (jobcomp/elasticsearch, influxdb profiles) only for a --with-libcurl without a path, found in PATH then.
        args = [
            arg
            for arg in super().configure_args()
            if not arg.startswith(("--with-pam_dir=", "--with-libcurl="))
        ]
        args.append("--with-libcurl")

        def choose(variant, name, path=None):
            if spec.satisfies(f"+{variant}"):
                args.append(f"--with-{name}={path}" if path else f"--with-{name}")
            else:
                args.append(f"--without-{name}")

        choose("restd", "yaml", spec["libyaml"].prefix if "libyaml" in spec else None)
        choose("lua", "lua")
        if spec.satisfies("~restd"):
            args += ["--without-http-parser", "--without-jwt"]
        if spec.satisfies("+pam"):
            args += ["--enable-pam", f"--with-pam_dir={self._pam_dir}"]
        else:
            args.append("--disable-pam")
        if spec.satisfies("+mariadb"):
            args.append(f"--with-mysql_config={spec['mariadb-c-client'].prefix.bin}")
        else:
            args.append("--with-mysql_config=no")
        for gpu in ("nvml", "rsmi"):
            if spec.satisfies(f"~{gpu}"):
                args.append(f"--without-{gpu}")
        if spec.satisfies("~gtk"):
            args.append("--disable-sview")
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


for _dependencies in Slurm.dependencies.values():
    _dependencies.pop("glib", None)
    _dependencies.pop("mariadb", None)
