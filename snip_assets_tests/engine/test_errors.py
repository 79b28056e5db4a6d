"""Messages that anybody may read."""

from __future__ import annotations

import pytest

from snip_assets.engine.errors import BadInputError


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("s3://me:pa55@bucket/a.npy: no such file.", "s3://bucket/a.npy: no such file."),
        ("https://me:pa55@host:1/x/a?sig=S3CR3T: 5 rows", "https://host:1/x/a: 5 rows"),
        ("read (https://host/a?sig=S3CR3T&b=1).", "read (https://host/a)."),
        ("`--features https://u:p@h/f#x --out o`", "`--features https://h/f --out o`"),
        ("http://me:pa@55@host/a: no", "http://host/a: no"),
        ("https://TOKEN@host/a: no", "https://host/a: no"),
        ("'http://a/x?y=1','http://b/z?w=2'", "'http://a/x','http://b/z'"),
        ("s3://bucket/a?b.npy: damaged", "s3://bucket/a?b.npy: damaged"),
        ("abfs://container@account/x.npy: no", "abfs://container@account/x.npy: no"),
        ("http://host:80/a@b.npy: no", "http://host:80/a@b.npy: no"),
        ("write to somebody@example.org", "write to somebody@example.org"),
    ],
)
def test_urls_in_messages_hold_no_secrets(said: str, shown: str) -> None:
    assert str(BadInputError(said)) == shown
