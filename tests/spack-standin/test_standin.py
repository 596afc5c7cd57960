#!/usr/bin/env python3
"""Tests of the stand-in's own parts that need neither a sandbox nor sources: reading, choosing, refusing, hashing."""

import json
import os
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.insert(0, os.path.join(HERE, "lib"))

from standin import config, recipes, solve, versions, yamlsubset  # noqa: E402  (the path above comes first)
from standin.say import SpackError  # noqa: E402

# A node of a lockfile of real Spack v1.0.0.
NODE_OF_SPACK = """{"name":"compiler-wrapper","version":"1.0","arch":{"platform":"linux","platform_os":"debian12",
"target":"x86_64"},"namespace":"builtin","parameters":{"build_system":"generic","cflags":[],"cppflags":[],"cxxflags":[],
"fflags":[],"ldflags":[],"ldlibs":[]},"package_hash":"vohu4wrffrhvsd4padcnlwdcmpwpqei4nzeytzsmkgxsl4cslfxq====",
"annotations":{"original_specfile_version":5},"hash":"4fghq5ibtjw6ag4knvkpnmu2cdp3bamt"}"""

SCOPE = {
    "config": """\
config:
  install_tree:
    root: /b/store
    projections:
      all: "{name}-{version}-{hash}"
  build_stage:
  - /b/stage
  source_cache: /b/cache
  build_jobs: 2
  shared_linking:
    type: rpath
    bind: false
  db_lock_timeout: 3600
  install_status: true
""",
    "packages": """\
packages:
  all:
    target:
    - x86_64
  gcc:
    externals:
    - spec: gcc@12.2.0 languages:='c,c++'
      prefix: /usr
      extra_attributes:
        compilers:
          c: /usr/bin/gcc
          cxx: /usr/bin/g++
  gmake:
    externals:
    - spec: gmake@4.3
      prefix: /usr
  zlib:
    require:
    - "{zlib}"
""",
    "repos": '"repos:": {}\n',
    "mirrors": '"mirrors:":\n  source-0:\n    url: file:///m\n    source: true\n',
    "concretizer": "concretizer:\n  unify: true\n",
}
ENVIRONMENT = """\
spack:
  specs:
  - {spec}
  view:
    default:
      root: /b/view/x
      link: all
      link_type: hardlink
  concretizer:
    unify: true
"""


class Yaml(unittest.TestCase):
    def test_what_serde_saphyr_writes_is_read(self):
        text = """\
spack:
  specs:
  - >-
    slurm@=24-11-5-1 ~readline
    sysconfdir=/etc/slurm
  - ~x
  - "@1: 2"
  - it's
  - "tab\\there"
  - |-
    new
    line
  - |
    new
      line
  - ""
  - file:///var/x
  - a\\b
  e: []
  m: {}
  "n": null
  t: true
  i: 3
  "mirrors:":
    a b: 1
    "1": 2
  nest:
  - - 1
    - 2
  - - a: 1
      b:
      - c: 1
  - x:
      "y": []
    z: 1
"""
        spack = {
            "specs": [
                "slurm@=24-11-5-1 ~readline sysconfdir=/etc/slurm",
                "~x",
                "@1: 2",
                "it's",
                "tab\there",
                "new\nline",
                "new\n  line\n",
                "",
                "file:///var/x",
                "a\\b",
            ],
            "e": [],
            "m": {},
            "n": None,
            "t": True,
            "i": 3,
            "mirrors:": {"a b": 1, "1": 2},
            "nest": [[1, 2], [{"a": 1, "b": [{"c": 1}]}], {"x": {"y": []}, "z": 1}],
        }
        self.assertEqual(yamlsubset.load(text, "x"), {"spack": spack})

    def test_anything_else_is_refused(self):
        for text in (
            "a: [b]",
            "a: {b: c}",
            "a: &x b",
            "a: !t b",
            "a: yes",
            "a: b # c",
            "a: b\n  c",
            "a: b\n c: d",
            "a: 'b",
            "a: 1\na: 2",
            "\ta: b",
            "---\na: b",
            "a: >+\n  b",
        ):
            with self.subTest(text), self.assertRaises(yamlsubset.YamlError):
                yamlsubset.load(text, "x")


class Versions(unittest.TestCase):
    def test_constraints_are_read(self):
        found = versions.parse("slurm@=24-11-5-1 ~pmix+pam sysconfdir=/etc/slurm languages:='c,c++'")
        self.assertEqual((found.name, found.versions), ("slurm", ["=24-11-5-1"]))
        wanted = {"pmix": False, "pam": True, "sysconfdir": "/etc/slurm", "languages": "c,c++"}
        self.assertEqual(found.variants, wanted)
        self.assertEqual(versions.parse("libs=shared ~nghttp2").variants, {"libs": "shared", "nghttp2": False})
        self.assertEqual(versions.parse("certs=system").name, "")

    def test_versions_are_compared_by_their_parts(self):
        cases = {
            "@1.3": {"1.3": True, "1.3.1": True, "1.30": False},
            "@=1.3": {"1.3": True, "1.3.1": False},
            "@1.2:1.3": {"1.2": True, "1.3.9": True, "1.4": False, "1.1.9": False},
            "@1.10:": {"1.9": False, "1.10": True, "2": True},
            "@:1.9": {"1.9.5": True, "1.10": False},
            "@1.0,2:": {"1.0.1": True, "1.1": False, "3": True},
        }
        for text, expected in cases.items():
            for version, admitted in expected.items():
                with self.subTest(text, version=version):
                    self.assertEqual(versions.parse(text).admits(version), admitted)

    def test_what_is_not_understood_is_refused(self):
        for text in ("zlib %gcc@12", "zlib ^gmake", "zlib arch=", "zlib/abcdef"):
            with self.subTest(text), self.assertRaises(SpackError):
                versions.parse(text)


class Solve(unittest.TestCase):
    def solve(self, spec, zlib="@1.3.1", **sections):
        with tempfile.TemporaryDirectory() as folder:
            scope, environment = (os.path.join(folder, name) for name in ("scope", "env"))
            every = {**SCOPE, **sections}
            texts = {f"{scope}/{name}.yaml": text.replace("{zlib}", zlib) for name, text in every.items()}
            texts[f"{environment}/spack.yaml"] = ENVIRONMENT.replace("{spec}", spec)
            for path, text in texts.items():
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "w", encoding="utf-8") as stream:
                    stream.write(text)
            return solve.Solver(config.read(scope, environment)).solve()

    def read(self, **sections):
        self.solve("zlib", **sections)

    def test_the_hash_is_that_of_spack(self):
        node = json.loads(NODE_OF_SPACK)
        self.assertEqual(solve.dag_hash(node), node["hash"])

    def test_nodes_come_with_their_dependencies_and_a_lockfile(self):
        nodes, roots = self.solve("zlib+shared")
        names = {node.name for node in nodes.values()}
        self.assertEqual(names, {"zlib", "gcc", "gcc-runtime", "glibc", "gmake", "compiler-wrapper"})
        lock = solve.to_lock(nodes, roots)
        self.assertEqual(lock["roots"], [{"hash": roots[0][0].hash, "spec": "zlib+shared"}])
        again, _ = self.solve("zlib+shared")
        self.assertEqual(list(nodes), list(again))

    def test_a_gcc_is_built_by_the_one_that_is_there(self):
        spec = "gcc@=13.4.0 +binutils+strip~bootstrap languages:='c,c++,fortran' %gcc@=12.2.0"
        open_to_it = SCOPE["packages"].replace("cxx: /usr/bin/g++\n", "cxx: /usr/bin/g++\n    buildable: true\n")
        nodes, roots = self.solve(spec, packages=open_to_it)
        self.assertEqual([node.label.rsplit("-", 1)[0] for node, _ in roots], ["gcc-13.4.0"])
        self.assertEqual({n.data["version"] for n in nodes.values() if n.name == "gcc"}, {"12.2.0", "13.4.0"})
        for text, packages, message in (
            (spec, SCOPE["packages"], "packages:gcc is not buildable"),
            (spec.replace("12.2.0", "11.1.0"), open_to_it, "there is 12.2.0"),
            (spec.replace("13.4.0", "9.9.9"), open_to_it, "the stand-in has: 14.2.0, 13.4.0"),
        ):
            with self.subTest(message), self.assertRaises(SpackError) as raised:
                self.solve(text, packages=packages)
            self.assertIn(message, str(raised.exception))

    def test_what_cannot_be_is_refused(self):
        cases = (
            ("zlib", "@9.9", "Version requirement 9.9 on zlib"),
            ("zlib@=7.7", "@1.3.1", "Cannot satisfy 'zlib@=7.7'"),
            ("zlibnone", "@1.3.1", "'zlibnone' does not exist"),
            ("zlib+frob", "@1.3.1", "No such variant {'frob'}"),
            ("zlib~shared", "@1.3.1", "`zlib ~shared` cannot be built by the stand-in"),
            ("json-c", "@1.3.1", "packages:cmake has no externals"),
        )
        for spec, zlib, message in cases:
            with self.subTest(spec), self.assertRaises(SpackError) as raised:
                self.solve(spec, zlib)
            self.assertIn(message, str(raised.exception))

    def test_an_install_tree_is_padded(self):
        for length, end in (
            (0, ""),
            (8, ""),
            (9, ""),
            (10, "/_"),
            (35, "/__spack_path_placeholder__"),
            (36, "/__spack_path_placeholder___"),
            (37, "/__spack_path_placeholder__/_"),
        ):
            with self.subTest(length):
                text = SCOPE["config"].replace("/b/store\n", f"/b/store\n    padded_length: {length}\n")
                nodes, _ = self.solve("zlib", config=text)
                prefix = next(node.prefix for node in nodes.values() if node.name == "zlib")
                self.assertEqual(os.path.dirname(prefix), "/b/store" + end)

    def test_what_the_configuration_lacks_is_named(self):
        cases = (
            ({"config": SCOPE["config"].replace("  source_cache: /b/cache\n", "")}, "config:source_cache"),
            ({"config": SCOPE["config"].replace("type: rpath", "type: runpath")}, "RPATHs only"),
            ({"config": SCOPE["config"].replace("{name}-", "")}, "projections"),
            ({"repos": '"repos:":\n  x: /nowhere\n'}, "No repo.yaml found in '/nowhere'"),
            ({"concretizer": "concretizer:\n  unify: false\n"}, "unifies"),
            ({"compilers": "compilers: []\n"}, "does not know this section"),
        )
        for sections, message in cases:
            with self.subTest(message), self.assertRaises(SpackError) as raised:
                self.read(**sections)
            self.assertIn(message, str(raised.exception))


class Recipes(unittest.TestCase):
    def test_sums_are_those_of_the_table_of_sources(self):
        with open(os.path.join(HERE, "../e2e/debian-sources.tsv"), encoding="utf-8") as stream:
            table = {tuple(line.split("\t")[:2]): line.split("\t")[2:5] for line in stream}
        for recipe in recipes.RECIPES.values():
            for version, source in recipe.versions.items():
                if source:
                    name, _, total = table[recipe.name, version]
                    self.assertEqual(source[0], total, recipe.name)
                    self.assertTrue(name.endswith(source[1]), recipe.name)

    def test_every_dependency_is_known(self):
        for recipe in recipes.RECIPES.values():
            for need in recipe.needs:
                self.assertIn(need.name, {*recipes.RECIPES, *recipes.EXTERNAL}, recipe.name)


if __name__ == "__main__":
    unittest.main()
