"""Makes an environment's view in the form that Spack leaves it.

    DIR/NAME                 a symlink to an absolute path: DIR/._NAME/HASH
    DIR/._NAME/HASH/...      real folders; files and symlinks are hard links into the store
    DIR/._NAME/HASH/.spack/PACKAGE/...   what the prefix has in .spack

The view is made beside and the symlink renamed over the old one. The hash is over what is in it: a view that is there
is not made again.
"""

import base64
import hashlib
import json
import os
import shutil

from . import say


def packages(nodes, roots):
    """What a view with `link: all` holds: everything that the roots need to link or to run, in a fixed order."""
    found, queue = {}, list(roots)
    while queue:
        hash = queue.pop(0)
        if hash not in found:
            found[hash] = nodes[hash]
            queue += nodes[hash].needs("link", "run")
    return [node for node in found.values() if not node.external]


def update(view, nodes, roots):
    """Makes the view when it is not what it should be."""
    wanted = [node for node in packages(nodes, roots) if os.path.isfile(os.path.join(node.prefix, ".spack/spec.json"))]
    content = json.dumps([view.link_type, sorted(node.hash for node in wanted)])
    own = base64.b32encode(hashlib.sha1(content.encode()).digest()).decode().lower()
    folder, name = os.path.split(view.root)
    target = os.path.join(folder, f"._{name}", own)
    if os.path.islink(view.root) and os.readlink(view.root) == target and os.path.isdir(target):
        return
    if wanted:
        say.message(f"Updating view at {view.root}")
    shutil.rmtree(target, ignore_errors=True)
    os.makedirs(target)
    for node in wanted:
        _link(node, target)
    beside = os.path.join(folder, f"._{name}", f"._link_{os.getpid()}")
    os.symlink(target, beside)
    os.replace(beside, view.root)
    for other in os.listdir(os.path.dirname(target)):
        if other != own:
            shutil.rmtree(os.path.join(os.path.dirname(target), other))


def _link(node, target):
    for source, folders, files in os.walk(node.prefix):
        below = os.path.relpath(source, node.prefix)
        first, _, rest = below.partition("/")
        if first == ".spack":
            below = os.path.join(".spack", node.name, rest)
        elif below == ".":
            below = ""
        into = os.path.join(target, below)
        os.makedirs(into, exist_ok=True)
        for name in [*files, *(each for each in folders if os.path.islink(os.path.join(source, each)))]:
            # The first that comes stays, as with Spack.
            if not os.path.lexists(os.path.join(into, name)):
                os.link(os.path.join(source, name), os.path.join(into, name), follow_symlinks=False)
