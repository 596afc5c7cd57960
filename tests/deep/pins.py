"""Are the catalog's pins there? pins.py CATALOG RECIPES SPACK; the last two are git directories.

Tags exist; each GCC is a version of the recipe at the release that the catalog names for it, not taken back; sums that our
recipes took from builtin's are builtin's, at whichever release of builtin's has the version; no release of builtin's knows a newer patch
of a Slurm than the catalog. (Sums of Slurm cannot be compared: builtin's are of other archives, GitHub's.)
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
    tags = subprocess.run(["git", f"--git-dir={recipes}", "tag", "--list", "v20*"], check=True, capture_output=True, text=True).stdout.split()
    folder = f"{catalog_file.rsplit('/', 1)[0]}/spack-repo/spack_repo/slurm_factory/packages"
    compared = 0
    for name, builtin in (("lua", "lua"), ("dbus", "dbus"), ("rocm_smi_header", "rocm_smi_lib")):
        with open(f"{folder}/{name}/package.py", encoding="utf-8") as stream:
            own = versions(stream.read())
        theirs = [versions(show(recipes, tag, f"{packages}/{builtin}/package.py")) for tag in tags]
        for version, sum in own.items():
            compared += 1
            if {known[version] for known in theirs if known.get(version)} != {sum}:
                wrong.append(f"{name} {version}: another sum than builtin's, or builtin has no such version")
    numbers = lambda version: [int(n) for n in re.findall(r"[0-9]+", version)]
    slurms = {v for tag in tags for v in versions(show(recipes, tag, f"{packages}/slurm/package.py"))}
    for release in catalog["slurm"]:
        newer = [v for v in slurms if numbers(v)[:2] == numbers(release["version"]) and numbers(v) > numbers(release["recipe"])]
        wrong += [f"Slurm {release['patch']}: builtin's recipes know {v}" for v in newer]
        if not any(numbers(v)[:2] == numbers(release["version"]) for v in slurms):
            print(f"note: no release of builtin's recipes knows any Slurm {release['version']}")
    for package in catalog["pins"]:
        show(recipes, pinned, f"{packages}/{package.replace('-', '_')}/package.py")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(catalog['compiler'])} compilers and {len(catalog['pins'])} pins are in the recipes, {compared} sums are builtin's")


main()
