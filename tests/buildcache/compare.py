#!/usr/bin/env python3
"""Compares two binary caches of the same packages: compare.py BY-SPACK BY-US

Of each tarball every header and every byte of every member, in order; what the last member says; the spec; the index.
Compression and, by a year's difference of their clocks, signatures may differ. Only Python's standard library is used.
"""
import glob, gzip, io, json, os, re, sys, tarfile

FRAME = re.compile(r"^-----BEGIN PGP SIGNED MESSAGE-----\s+Hash:\s+[^\s]+\s+(.+)-----BEGIN PGP SIGNATURE-----", re.M | re.S)


def blob(cache, record):
    with open(f"{cache}/blobs/sha256/{record['checksum'][:2]}/{record['checksum']}", "rb") as f:
        data = f.read()
    assert len(data) == record["contentLength"], record
    return gzip.decompress(data) if record["compression"] == "gzip" else data


def manifest(path):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    found = FRAME.search(text)
    return json.loads(found.group(1) if found else text)


def by_type(path):
    return {record["mediaType"]: record for record in manifest(path)["data"]}


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for m in tar.getmembers():
            content = tar.extractfile(m).read() if m.isreg() else b""
            yield (m.name, m.type, m.mode, m.uid, m.gid, m.uname, m.gname, m.mtime, m.linkname), content


def distribution(text):
    """JSON, or the flow style YAML that Spack writes: without a YAML parser, its keys and values by their form."""
    try:
        said = json.loads(text)
    except ValueError:
        said = {}
        flat = re.sub(r"\s+", " ", text.decode())
        for key, value in re.findall(r"(\w+): (\[[^\]]*\]|\{[^}]*\}|[^,{}]+)", flat.strip()[1:-1]):
            if value.startswith("["):
                said[key] = [v.strip().strip("'\"") for v in value[1:-1].split(",") if v.strip()]
            elif value.startswith("{"):
                said[key] = dict(tuple(x.strip() for x in pair.split(":", 1)) for pair in value[1:-1].split(","))
            else:
                said[key] = {"true": True, "false": False}.get(value.strip(), value.strip())
    said.pop("spackprefix")
    return said


def main(theirs, ours):
    names = sorted(os.path.relpath(p, theirs) for p in glob.glob(f"{theirs}/v3/manifests/spec/*/*.json"))
    assert names == sorted(os.path.relpath(p, ours) for p in glob.glob(f"{ours}/v3/manifests/spec/*/*.json")), names
    assert names, "nothing to compare"
    for name in names:
        a, b = by_type(f"{theirs}/{name}"), by_type(f"{ours}/{name}")
        assert list(a) == list(b), (list(a), list(b))
        for kind in a:
            one, two = blob(theirs, a[kind]), blob(ours, b[kind])
            if kind.endswith("+json"):
                assert json.loads(one) == json.loads(two), name
                continue
            one, two = list(members(one)), list(members(two))
            assert [m for m, _ in one] == [m for m, _ in two], [x for x in zip(one, two) if x[0][0] != x[1][0]][:3]
            for (head, left), (_, right) in zip(one[:-1], two[:-1]):
                assert left == right, head
            assert one[-1][0][0].endswith("/.spack/binary_distribution"), one[-1][0]
            left, right = distribution(one[-1][1]), distribution(two[-1][1])
            assert left == right, (left, right)
    def index(cache):
        (record,) = manifest(f"{cache}/v3/manifests/index/index.manifest.json")["data"]
        return record["mediaType"], json.loads(blob(cache, record))

    one, two = index(theirs), index(ours)
    assert one == two, (one, two)


main(*sys.argv[1:])
