"""Are the catalog's pins there? pins.py CATALOG RECIPES SPACK; the last two are git directories.

Tags exist; each GCC is a version of the recipe at the release that the catalog names for it, not taken back; sums that our
recipes took from builtin's are still builtin's.
"""

import re
import subprocess
import sys
import tomllib


def show(git, tag, path):
    command = ["git", f"--git-dir={git}", "show", f"{tag}:{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def versions(recipe):
    return dict(re.findall(r'version\(\s*"([^"]+)",\s*(?:sha256="([0-9a-f]{64})")?', recipe))


def main():
    catalog_file, recipes, spack = sys.argv[1:]
    with open(catalog_file, "rb") as stream:
        catalog = tomllib.load(stream)
    wrong = []
    show(spack, catalog["spack"]["reference"], "lib/spack/spack/__init__.py")
    pinned = catalog["spack-packages"]["reference"]
    packages = "repos/spack_repo/builtin/packages"
    for compiler in catalog["compiler"]:
        tag = compiler.get("recipes", pinned)
        known = versions(show(recipes, tag, f"{packages}/gcc/package.py"))
        if not known.get(compiler["version"]):
            wrong.append(f"GCC {compiler['version']}: not in the recipes {tag}")
        if "recipes" in compiler and compiler["version"] in versions(show(recipes, pinned, f"{packages}/gcc/package.py")):
            wrong.append(f"GCC {compiler['version']}: in the pinned recipes too; `recipes` is not needed")
    rocm = versions(show(recipes, pinned, f"{packages}/rocm_smi_lib/package.py"))
    own = versions(open(f"{catalog_file.rsplit('/', 1)[0]}/spack-repo/spack_repo/slurm_factory/packages/rocm_smi_header/package.py", encoding="utf-8").read())
    wrong += [f"rocm-smi-header {v}: another sum than builtin's" for v, sum in own.items() if rocm.get(v) != sum]
    for package in catalog["pins"]:
        show(recipes, pinned, f"{packages}/{package.replace('-', '_')}/package.py")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(catalog['compiler'])} compilers and {len(catalog['pins'])} pins are in the recipes")


main()
