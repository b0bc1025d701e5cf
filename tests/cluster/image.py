"""image.py NAME ROOT OUT.tar PROGRAM: an image of the folder ROOT, which starts PROGRAM."""

import hashlib
import io
import json
import sys
import tarfile

name, root, out, program = sys.argv[1:]
layer = io.BytesIO()
with tarfile.open(fileobj=layer, mode="w") as tar:
    tar.add(root, ".")
digest = hashlib.sha256(layer.getvalue()).hexdigest()
config = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Entrypoint": [program]},
    "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
}
manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
with tarfile.open(out, "w") as archive:
    for file, content in (
        ("config.json", json.dumps(config).encode()),
        ("manifest.json", json.dumps(manifest).encode()),
        ("layer.tar", layer.getvalue()),
    ):
        entry = tarfile.TarInfo(file)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
