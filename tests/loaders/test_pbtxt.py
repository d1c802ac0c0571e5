"""Protobuf's text format, as far as config.pbtxt files use it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loaders.pbtxt import Word, read


def test_forms_of_a_field() -> None:
    """Lists, messages with and without colon, comments, neighbouring texts, numbers of each kind."""
    found = read(
        """
        # a comment
        name: "a" 'b'  # and one more
        dims: [ 1, -1, 0x10 ] dims: 4
        input [ { name: "x" }, { name: "y" } ]
        output { kind: TYPE_FP32; on: true }
        nested: < rate: 1.5e3f >
        """
    )
    assert found == {
        "name": ["ab"],
        "dims": [1, -1, 16, 4],
        "input": [{"name": ["x"]}, {"name": ["y"]}],
        "output": [{"kind": ["TYPE_FP32"], "on": ["true"]}],
        "nested": [{"rate": [1500.0]}],
    }
    assert isinstance(found["output"][0]["kind"][0], Word)
    assert not isinstance(found["name"][0], Word)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("a", "line 1: found the end of the file: expected ':' or '{' after 'a'"),
        ("\n\na: ]", "line 3: found ']': expected a value"),
        ("a {", "expected the name of a field or '}'"),
        ("a: [1 2]", "expected ',' or ']'"),
        ('a: "x', "is no part of the text format"),
        ("}", "expected the name of a field"),
        ("a{" * 40, "nested more than 32 deep"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(source: str, said: str) -> None:
    """Line, what was found and what was expected."""
    with pytest.raises(ValueError, match="line") as wrong:
        read(source)
    assert said in str(wrong.value)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(source: str) -> None:
    """Nothing but ValueError comes out of a file that a stranger wrote."""
    try:
        read(source)
    except ValueError as exc:
        assert str(exc).startswith("line ")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=30))
def test_texts_come_back(text: str) -> None:
    """What stands in quotes is the value."""
    assert read(f'a: "{text}"') == {"a": [text]}
