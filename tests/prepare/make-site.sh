#!/usr/bin/env bash
#
# Makes what the tests of the prepare stage stand on: a base image that is installed into with dnf, apt and pip, and a site
# that has packages for each.
#
#   make-site.sh TREE OUTDIR     TREE keeps Debian's part between runs, as TREE.tar
#     OUTDIR/base/               the image's root: Debian's minbase with rpm, dnf and pip, that says it is Rocky 9
#     OUTDIR/site/rocky/         what a mirror of Rocky has: packages of ours that hurt in a sandbox with one uid
#     OUTDIR/site/snap/debian/   an archive for apt as it was at two times; the older one has run out (Valid-Until)
#     OUTDIR/site/simple/        a Python package index with the pinned wheels of rootfs/debian12
#     OUTDIR/ca.pem, server.pem, server-key.pem
#     OUTDIR/site.asc, other.asc the key that signs the archives for apt and dnf, and one that signs nothing
#
# A real Rocky image is in no package registry. rpm, dnf, createrepo_c, gpg and apt are the real ones. Runs as root.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/e2e/debian-archive.sh
source "$here/../e2e/debian-archive.sh"
[[ $# -eq 2 ]] || die "usage: make-site.sh TREE OUTDIR"
tree=$1
mkdir -p "$2"
out=$(cd "$2" && pwd)
need mmdebstrap rpmbuild:rpm rpmsign:rpm createrepo_c:createrepo-c gpg:gnupg openssl apt-ftparchive:apt-utils dpkg-deb:dpkg pip3:python3-pip
export GNUPGHOME=$out/gnupg
mkdir -m 700 "$GNUPGHOME"
site=$out/site
mkdir -p "$site"

base_tree() {
    local base=$out/base
    if [[ ! -e $tree.tar ]]; then
        debian_sources deb bookworm >"$out/debian.sources"
        mmdebstrap --quiet --variant=minbase --mode=root --include=dnf,rpm,passwd,libcap2-bin,python3-pip --format=tar \
            --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
            --dpkgopt='path-exclude=/usr/share/doc/*' bookworm "$tree.part" "$out/debian.sources"
        mv "$tree.part" "$tree.tar"
    fi
    mkdir -p "$base"
    tar -xf "$tree.tar" -C "$base" --exclude './dev/*'
    printf 'NAME="Rocky Linux"\nID="rocky"\nVERSION_ID="9.6"\n' >"$base/usr/lib/os-release"
    mkdir -p "$base/etc/yum.repos.d" "$base/etc/pki/rpm-gpg"
    # As Rocky's: a list of mirrors, and the address in a comment.
    cat >"$base/etc/yum.repos.d/rocky.repo" <<'REPO'
# rocky.repo
[baseos]
name=Rocky Linux $releasever - BaseOS
mirrorlist=https://mirrors.invalid/mirrorlist?arch=$basearch&repo=BaseOS-$releasever
#baseurl=http://dl.rockylinux.org/$contentdir/$releasever/BaseOS/$basearch/os/
gpgcheck=1
enabled=1
metadata_expire=6h
gpgkey=file:///etc/pki/rpm-gpg/RPM-GPG-KEY-test
REPO
    gpg --armor --export site >"$base/etc/pki/rpm-gpg/RPM-GPG-KEY-test"
    gpg --export site >"$base/etc/apt/site.gpg"
    printf 'deb [signed-by=/etc/apt/site.gpg] http://archive.invalid/debian stable main\n' >"$base/etc/apt/sources.list"
    rm -rf "$base"/etc/apt/sources.list.d/* "$base"/var/lib/apt/lists/*
    # rpm must know which release it is, and that there is a shell for scriptlets.
    rpm --root "$base" --nodeps --noscripts -i "$out"/rpms/*/rocky-release-*.rpm
    # Whoever runs the tests copies it; what only root may read is not needed.
    chmod -R a+rX "$base"
}

# spec NAME <<...: builds a package out of the rest of a spec file
spec() {
    {
        printf 'Name: %s\nVersion: %s\nRelease: 1\nSummary: of the tests\nLicense: none\nAutoReqProv: no\n' "$1" "$2"
        cat
    } >"$out/$1.spec"
    rpmbuild --quiet -bb --define "_topdir $out/rpmbuild" --define "_rpmdir $out/rpms" --define '_build_id_links none' \
        --define '__os_install_post %{nil}' --define 'debug_package %{nil}' "$out/$1.spec" >"$out/$1.log" 2>&1 ||
        die "rpmbuild of $1: $(tail -n 5 "$out/$1.log")"
}

rpms() {
    spec rocky-release 9.6 <<'SPEC'
BuildArch: noarch
Provides: system-release = 9
Provides: system-release(releasever) = 9
Provides: /bin/sh
%description
What the image says it is.
%files
SPEC
    # What asks for the compiler's version gets an answer; nothing is compiled in these tests.
    spec gcc 11.5.0 <<'SPEC'
BuildArch: noarch
%description
A compiler's name.
%install
mkdir -p %{buildroot}/usr/bin
printf '#!/bin/sh\necho 11.5.0\n' >%{buildroot}/usr/bin/gcc
%files
%attr(755,root,root) /usr/bin/gcc
SPEC
    spec hard 1.0 <<'SPEC'
Requires: gcc
Requires(pre): /bin/sh
Recommends: weak
%description
Everything that needs a root who may change owners.
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/etc %{buildroot}/var/lib/hard
for name in setuid setgid caps post; do cp /bin/true %{buildroot}/usr/bin/hard-$name; done
echo secret >%{buildroot}/etc/hard.conf
ln -s hard.conf %{buildroot}/etc/hard.link
ln %{buildroot}/etc/hard.conf %{buildroot}/var/lib/hard/linked
%pre
set -e
groupadd -r hardgroup
useradd -r -g hardgroup -d /var/lib/hard -s /usr/sbin/nologin harduser
%post
set -e
install -o harduser -g hardgroup -m 0600 /dev/null /var/lib/hard/data
chown -R harduser:hardgroup /var/lib/hard
chgrp hardgroup /usr/bin/hard-post
chmod 2750 /usr/bin/hard-post
setcap cap_net_bind_service+ep /usr/bin/hard-post
mknod /var/lib/hard/null c 1 3
# What a file system without extended attributes, or an old kernel, answers to setcap: here a name that needs true root.
python3 -c 'import os; os.setxattr("/usr/bin/hard-post", "trusted.test", b"x")'
%posttrans
getent passwd harduser >/var/lib/hard/user
%files
%attr(0640,harduser,hardgroup) %config /etc/hard.conf
%attr(0640,harduser,hardgroup) /var/lib/hard/linked
%attr(-,harduser,hardgroup) /etc/hard.link
%attr(4755,root,root) /usr/bin/hard-setuid
%attr(2755,root,tty) /usr/bin/hard-setgid
%attr(0755,root,root) %caps(cap_net_raw,cap_net_admin=ep) /usr/bin/hard-caps
%attr(0755,root,root) /usr/bin/hard-post
%dir %attr(1770,harduser,hardgroup) /var/lib/hard
SPEC
    spec weak 1.0 <<'SPEC'
BuildArch: noarch
%description
Recommended by another, not wanted.
%files
SPEC
    spec unsigned 1.0 <<'SPEC'
BuildArch: noarch
%description
Signed by nobody.
%files
SPEC
    local os file
    os=$site/rocky/9/BaseOS/$(uname -m)/os
    mkdir -p "$os/Packages"
    cp "$out"/rpms/*/*.rpm "$os/Packages/"
    for file in "$os"/Packages/*.rpm; do
        [[ $file == */unsigned-* ]] || rpmsign --define '_gpg_name site' --define "__gpg $(command -v gpg)" --addsign "$file" >/dev/null 2>&1 || die "rpmsign $file"
    done
    createrepo_c --quiet "$os"
}

# deb VERSION FOLDER: an archive with the one package `dated`
deb() {
    local version=$1 archive=$2 until=$3 work=$out/deb-$1
    mkdir -p "$work/DEBIAN" "$work/usr/bin" "$archive/pool" "$archive/dists/stable/main/binary-$(dpkg --print-architecture)"
    printf 'Package: dated\nVersion: %s\nArchitecture: all\nMaintainer: tests <t@localhost>\nDescription: of the tests\n' \
        "$version" >"$work/DEBIAN/control"
    printf '#!/bin/sh\necho 12.2.0\n' >"$work/usr/bin/gcc"
    chmod 755 "$work/usr/bin/gcc"
    dpkg-deb --root-owner-group --build "$work" "$archive/pool/dated_${version}_all.deb" >/dev/null
    (
        cd "$archive"
        apt-ftparchive packages pool >"dists/stable/main/binary-$(dpkg --print-architecture)/Packages"
        apt-ftparchive -o APT::FTPArchive::Release::Suite=stable -o APT::FTPArchive::Release::Codename=stable \
            -o APT::FTPArchive::Release::Components=main \
            -o "APT::FTPArchive::Release::Architectures=$(dpkg --print-architecture)" release dists/stable >"$out/Release"
        { printf '%s\n' "$until" && grep -v '^Date:\|^Valid-Until:' "$out/Release"; } >dists/stable/Release
        gpg --quiet --local-user site --clearsign --output dists/stable/InRelease dists/stable/Release
    )
}

debs() {
    local old=20200101T000000Z new=20260101T000000Z
    deb 1.0 "$site/snap/debian/$old" $'Date: Wed, 01 Jan 2020 00:00:00 UTC\nValid-Until: Wed, 08 Jan 2020 00:00:00 UTC'
    deb 2.0 "$site/snap/debian/$new" $'Date: Thu, 01 Jan 2026 00:00:00 UTC\nValid-Until: Thu, 01 Jan 2099 00:00:00 UTC'
    # Where a site that keeps one state has the newest, and one that was forgotten.
    mkdir -p "$site/now" "$site/stale"
    ln -s "../snap/debian/$new" "$site/now/debian"
    ln -s "../snap/debian/$old" "$site/stale/debian"
}

# The simple repository interface (PEP 503): a page a project, links with sums. `wrong` has another file under a pinned name.
index() {
    local wheel name
    mkdir -p "$out/wheels"
    pip3 download --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes --implementation cp \
        --python-version 3.11 --platform "manylinux2014_$(uname -m)" --platform "manylinux_2_28_$(uname -m)" \
        -r "$here/../../rootfs/debian12/requirements.txt" -d "$out/wheels"
    for wheel in "$out"/wheels/*.whl; do
        name=$(basename "$wheel")
        for kind in simple wrong; do
            mkdir -p "$site/$kind/${name%%-*}"
            cp "$wheel" "$site/$kind/${name%%-*}/"
            printf '<!DOCTYPE html><a href="%s">%s</a>\n' "$name" "$name" >"$site/$kind/${name%%-*}/index.html"
        done
    done
    printf x >>"$(echo "$site"/wrong/cffi/*.whl)"
}

authority() {
    cd "$out"
    openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=site-ca -keyout ca-key.pem -out ca.pem 2>/dev/null
    openssl req -newkey rsa:2048 -nodes -subj /CN=site -keyout server-key.pem -out server.csr 2>/dev/null
    printf 'subjectAltName=DNS:localhost,DNS:site.test\n' >server.ext
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca-key.pem -days 2 -extfile server.ext -out server.pem 2>/dev/null
}

for name in site other; do
    gpg --quiet --batch --passphrase '' --quick-generate-key "$name <$name@localhost>" rsa2048 sign never 2>/dev/null
    gpg --armor --export "$name" >"$out/$name.asc"
done
rpms
base_tree
debs
index
authority
chmod -R a+rX "$out"
gpgconf --kill all
