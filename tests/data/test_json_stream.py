from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion3d.data import json_stream
from fusion3d.data.json_stream import JsonStream, open_json
from fusion3d.errors import DataError

PLAIN = st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats(allow_nan=False) | st.text(max_size=9)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def walk(stream: JsonStream, depth: int = 0):
    """The value that begins here: containers near the top step by step, the rest whole."""
    if depth < 2 and stream.peek() == "{":
        found = {}
        for key in stream.members():
            stream.member()
            found[key] = walk(stream, depth + 1)
        return found
    if depth < 2 and stream.peek() == "[":
        return [walk(stream, depth + 1) for _ in stream.elements()]
    return stream.value()


def read(text: str):
    stream = JsonStream(io.StringIO(text), Path("file.json"))
    found = walk(stream)
    stream.end()
    return found


@pytest.fixture(scope="module", params=[1, 7, 1 << 20], autouse=True)
def chunk(request):
    """How much is read at once: values end at, before and behind every cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", request.param)
        yield


@given(VALUES, st.sampled_from([None, 2]))
@settings(max_examples=40, deadline=None)
def test_what_is_read_is_what_the_json_module_reads(value, indent):
    text = json.dumps(value, indent=indent)
    assert read(f" {text}\n") == json.loads(text)


@given(st.dictionaries(st.text(max_size=5), VALUES, min_size=1, max_size=3), st.data())
@settings(max_examples=40, deadline=None)
def test_a_file_that_was_cut_short_is_refused(value, data):
    text = json.dumps(value)
    end = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(DataError, match=r"file\.json: no valid JSON at character \d+"):
        read(text[:end])


@pytest.mark.parametrize(
    "text", ['{"a" 1}', '{"a": 1,}', "{a: 1}", "[1 2]", "[1,]", '{"a": tru}', "{} x", "[1]]", '"\\x"']
)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError):
        json.loads(text)
    with pytest.raises(DataError, match="no valid JSON at character"):
        read(text)


def test_what_is_too_long_or_too_deep_ends_early():
    if json_stream.CHUNK < 100:
        pytest.skip("reading millions of characters one by one takes long")
    for text, message in (
        ('"' + 9_000_000 * "a" + '"', "more than 4194304 characters"),
        (200_000 * "[", "nested too deeply|more than 4194304"),
        (5_000 * "1", r"limit \(4300( digits)?\) for integer string conversion"),
    ):
        with pytest.raises(DataError, match=message):
            read(text)


def test_a_mistake_is_found_where_it_is_not_at_the_end_of_the_file():
    source = io.StringIO('[1, {"a": x}, ' + 5_000_000 * " " + "]")
    stream = JsonStream(source, Path("file.json"))
    with pytest.raises(DataError, match=r"at character 10: .*found 'x}, "):
        walk(stream)
    assert source.tell() <= max(json_stream.CHUNK, 100)


def test_numbers_that_are_none_in_json_are_read_to_be_found_later():
    assert math.isnan(read("[NaN]")[0]) and read("[1e999]") == [math.inf]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes").write_bytes(b'{"a": "\xff"}')
    (tmp_path / "large").write_text("[" + 100 * " " + "]")
    for name, message in (
        (".", "not a plain file"),
        ("none", "no such file"),
        ("bytes", "not UTF-8"),
        ("large", "102 bytes"),
    ):
        with pytest.raises(DataError, match=message), open_json(tmp_path / name, max_bytes=50) as stream:
            walk(stream)
