"""What a JSON file may hold: harm is refused, and what is wrong is described in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxlava.errors import UserError
from mlxlava.records import FOOTAGE, LOG_LINE, PROGRESS, RUN_CONFIG, WEIGHTS_CONFIG
from mlxlava.schema import Check, Mismatch, parse_json, read_lines, read_object

GOOD_RUN = {
    "format": 1,
    "step_fps": 5.0,
    "recipe": {},
    "total_steps": 4,
    "footage": {"sources": ["a.mp4"], "prepared": "/p", "key": "k"},
}


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 40 + "1" + "}" * 40, "9" * 5000, b"\xff", "{", "", "[1,]", " " * 2**25],
    ids=["deep", "somewhat deep", "digits", "no UTF-8", "cut", "empty", "comma", "large"],
)
def test_json_that_does_harm_is_refused(text: str | bytes) -> None:
    with pytest.raises(Mismatch):
        parse_json(text)


@pytest.mark.parametrize(
    ("check", "value", "said"),
    [
        (PROGRESS, {}, "lacks step"),
        (PROGRESS, {"step": -1, "seconds": 0}, "step must be a whole number in 0 … 2147483647, not -1"),
        (PROGRESS, {"step": 2**63, "seconds": 0}, "step must"),
        (PROGRESS, {"step": True, "seconds": 0}, "step must"),
        (PROGRESS, {"step": "4", "seconds": 0}, "step must"),
        (PROGRESS, {"step": 4, "seconds": float("inf")}, "seconds must"),
        (PROGRESS, {"step": 4, "seconds": float("nan")}, "seconds must"),
        (LOG_LINE, 3, "object"),
        (LOG_LINE, None, "object"),
        (LOG_LINE, {"step": None}, "step must"),
        (WEIGHTS_CONFIG, {**GOOD_RUN, "machine": []}, "machine must hold an object"),
        (WEIGHTS_CONFIG, {**GOOD_RUN, "footage": {"sources": [3]}}, r"footage\.sources\[0\] must be a text"),
        (WEIGHTS_CONFIG, {**GOOD_RUN, "seconds": "x"}, "seconds must"),
        (WEIGHTS_CONFIG, {**GOOD_RUN, "step_fps": 0}, "step_fps must"),
        (WEIGHTS_CONFIG, {**GOOD_RUN, "recipe": 1}, "recipe must hold an object"),
        (RUN_CONFIG, {**GOOD_RUN, "total_steps": None}, "total_steps"),
        (RUN_CONFIG, {"format": 1, "step_fps": 5, "recipe": {}, "footage": {}}, "lacks sources"),
        (RUN_CONFIG, {**GOOD_RUN, "footage": {**GOOD_RUN["footage"], "sources": [-1]}}, "sources"),  # type: ignore[dict-item]
        (RUN_CONFIG, {**GOOD_RUN, "schedule": {"decisions": [], "minutes": None}}, "rise from 0"),
        (
            RUN_CONFIG,
            {**GOOD_RUN, "schedule": {"decisions": [[5, 9, False]], "minutes": None}},
            "rise from 0",
        ),
        (FOOTAGE, {"format": 1, "size": [16, -1], "cuts": [], "fps": 5, "every_nth": 1, "frames": 1}, "size"),
    ],
)
def test_a_file_that_holds_something_else_is_described(check: Check, value: object, said: str) -> None:
    with pytest.raises(Mismatch, match=said) as refused:
        check(value, "")
    assert len(str(refused.value)) < 200


def test_a_good_config_is_taken_with_keys_that_are_not_known() -> None:
    assert RUN_CONFIG({**GOOD_RUN, "later": [1]}, "")["later"] == [1]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(UserError, match=r"^run: cannot read .*a\.json: No such file"):
        read_object(path, "run", PROGRESS)
    path.write_text('{"step": "' + "x" * 10_000 + '", "seconds": 0}')
    with pytest.raises(UserError, match=r"a\.json: step must") as refused:
        read_object(path, "run", PROGRESS)
    assert len(str(refused.value)) < 400


def test_lines_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    bad = [
        b"3",
        b"null",
        b'{"step": null}',
        b"\xff\xfe",
        b"[" * 50_000,
        b'{"step": 1e999}',
        b"x" * 2**21,
        b"",
    ]
    path.write_bytes(b"\n".join([b'{"step": 1}', *bad, b'{"step": 2}', b'{"step": 3']))
    assert [line["step"] for _, line in read_lines(path, LOG_LINE)] == [1, 2]
