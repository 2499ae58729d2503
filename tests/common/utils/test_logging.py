"""Log lines for people and for programs, from real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SCRIPT = """
import sys
from common.utils.logging import get_logger
log = get_logger("trainer")
get_logger("other")
log.info("saved checkpoint", extra={"step": 200, "path": sys.executable})
log.debug("hidden")
log.warning("slow %s", "disk")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("it broke")
"""


def lines_of(**environment: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "", "stdout is for results"
    return result.stderr.splitlines()


def test_text_has_the_fields_behind_the_message_and_the_level_before_it() -> None:
    lines = lines_of()
    assert lines[0] == f"saved checkpoint  step=200  path={sys.executable}"
    assert lines[1] == "warning: slow disk"
    assert lines[2] == "error: it broke"


def test_json_is_an_object_per_line_with_the_fields_as_keys() -> None:
    saved, slow, broke = (json.loads(line) for line in lines_of(RESEARCH_LOG="json"))
    assert saved["message"] == "saved checkpoint" and saved["step"] == 200
    assert (saved["level"], slow["level"], broke["level"]) == ("info", "warning", "error")
    assert saved["logger"] == "research.trainer" and "T" in saved["time"]


def test_a_logged_exception_says_what_happened() -> None:
    assert "ZeroDivisionError" in "\n".join(lines_of())
    assert "ZeroDivisionError" in "\n".join(lines_of(RESEARCH_LOG="json"))
