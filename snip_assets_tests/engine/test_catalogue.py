"""Files that others name: what a catalogue may say."""

from __future__ import annotations

import json

import pytest

from snip_assets.engine import catalogue
from snip_assets.engine.errors import BadInputError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("file", "../../escape.npy"),
        ("file", "/escape.npy"),
        ("file", ".."),
        ("format", "zzz"),
        ("checksum", "crc32:ab"),
        ("checksum", "sha256:ab"),
        ("location", 5),
        ("kind", "page"),
    ],
)
def test_a_catalogue_of_others_names_plain_files(tmp_path, name, value):
    entry = {"name": "a", "kind": "bitmap", "file": "a.npy", "location": "x", "format": "npy"}
    path = tmp_path / "catalogue.json"
    path.write_text(json.dumps({"files": [entry]}))
    assert catalogue.load(path)["a"].file == "a.npy"
    path.write_text(json.dumps({"files": [{**entry, name: value}]}))
    with pytest.raises(BadInputError, match=rf"{path.name}: a: .*{name}|{path.name}: a: {name}"):
        catalogue.load(path)


@pytest.mark.parametrize(
    ("kind", "place"),
    [("model", "x.index"), ("bitmap", "net.safetensors"), ("index", "is_dup.npy")],
)
def test_a_file_of_another_kind_is_not_fetched(tmp_path, kind, place):
    with pytest.raises(BadInputError, match=f"is no {kind}"):
        catalogue.load()[kind].wanted(tmp_path, f"https://example.org/{place}")
