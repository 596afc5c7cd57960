#!/usr/bin/env python3
"""Makes the tarballs of an install tree anew with Python's own tarfile, and compares them byte for byte with those of a cache.

reference.py TREE ROOT CACHE: TREE is where the tree lies, ROOT the path that its files name. The order, modes and names are those
of the documentation of Spack v1.0 ("Build cache layout"); the last member is compared by what it must say.
"""
import glob, gzip, io, json, os, re, sys, tarfile

FRAME = re.compile(r"^-----BEGIN PGP SIGNED MESSAGE-----\s+Hash:\s+[^\s]+\s+(.+)-----BEGIN PGP SIGNATURE-----", re.M | re.S)
tree, root, cache = sys.argv[1:]


def info(name, kind, mode, size=0, link=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, size, link
    return entry


def tarball(directory, prefix, last):
    out = io.BytesIO()
    with tarfile.TarFile(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        parts = prefix.strip("/").split("/")
        for n in range(1, len(parts)):
            tar.addfile(info("/".join(parts[:n]), tarfile.DIRTYPE, 0o755))
        seen, stack = {}, [""]
        while stack:
            folder = stack.pop()
            name = lambda path: "/".join(parts + ([path] if path else []))
            tar.addfile(info(name(folder), tarfile.DIRTYPE, 0o755))
            below = []
            for entry in sorted(os.listdir(os.path.join(directory, folder))):
                path = os.path.join(folder, entry)
                full = os.path.join(directory, path)
                status = os.lstat(full)
                if os.path.islink(full):
                    tar.addfile(info(name(path), tarfile.SYMTYPE, 0o755, link=os.readlink(full)))
                elif os.path.isdir(full):
                    below.append(path)
                elif path != ".spack/binary_distribution":
                    mode = 0o755 if status.st_mode & 0o100 else 0o644
                    if status.st_nlink > 1 and (status.st_dev, status.st_ino) in seen:
                        tar.addfile(info(name(path), tarfile.LNKTYPE, mode, link=seen[status.st_dev, status.st_ino]))
                        continue
                    seen[status.st_dev, status.st_ino] = name(path)
                    with open(full, "rb") as f:
                        tar.addfile(info(name(path), tarfile.REGTYPE, mode, status.st_size), f)
            stack.extend(reversed(below))
        tar.addfile(info(name(".spack/binary_distribution"), tarfile.REGTYPE, 0o644, len(last)), io.BytesIO(last))
    return out.getvalue()


def plain(data):
    """With each header's checksum in one form: writers end its digits in their own ways, and readers take them all."""
    data, at = bytearray(data), 0
    while at < len(data):
        header = data[at : at + 512]
        if any(header):
            said = int(header[148:156].strip(b" \0"), 8)
            assert said == sum(header[:148]) + sum(header[156:]) + 8 * 32, at
            data[at + 148 : at + 156] = b"%07o\0" % said
        size = int(header[124:136].strip(b" \0") or b"0", 8)
        at += 512 + (size + 511) // 512 * 512
    return bytes(data)


def blob(record):
    with open(f"{cache}/blobs/sha256/{record['checksum'][:2]}/{record['checksum']}", "rb") as f:
        return f.read()


said = {}
for path in glob.glob(f"{cache}/v3/manifests/spec/*/*.json"):
    with open(path) as f:
        (package, spec) = json.loads(FRAME.search(f.read()).group(1))["data"]
    spec = json.loads(gzip.decompress(blob(spec)))
    assert spec["buildcache_layout_version"] == 2
    name, hash = spec["spec"]["nodes"][0]["name"], spec["spec"]["nodes"][0]["hash"]
    with open(f"{tree}/{name}-{hash}/.spack/spec.json") as f:
        assert json.load(f)["spec"] == spec["spec"]
    ours = gzip.decompress(blob(package))
    with tarfile.open(fileobj=io.BytesIO(ours)) as tar:
        last = tar.extractfile(tar.getmembers()[-1]).read()
    theirs = tarball(f"{tree}/{name}-{hash}", f"{root}/{name}-{hash}", last)
    ours, theirs = plain(ours), plain(theirs)
    assert len(ours) == len(theirs), (name, len(ours), len(theirs))
    if ours != theirs:
        at = next(i for i in range(len(ours)) if ours[i] != theirs[i])
        raise AssertionError((name, at, ours[at - at % 512:][:512], theirs[at - at % 512:][:512]))
    said[name] = json.loads(last)

app, lib = said["app"], said["lib"]
assert app["relocate_textfiles"] == ["bin/also", "share/far.txt"], app
assert app["relocate_links"] == ["absolute"] and app["relocate_binaries"] == [], app
assert lib["relocate_binaries"] == ["lib/liblib.so"] and lib["relocate_links"] == [], lib
assert app["buildpath"] == root and app["relative_prefix"].startswith("app-"), app
assert len(app["hash_to_prefix"]) == 2 and len(lib["hash_to_prefix"]) == 1, app
