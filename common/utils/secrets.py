"""Find keys, tokens and passwords in a diff, which must not be stored with an experiment.

The patterns are those published by issuers and used by scanners such as gitleaks
(https://github.com/gitleaks/gitleaks/blob/master/config/gitleaks.toml). Other secrets are found by
the name that they are assigned to.
"""

from __future__ import annotations

import math
import re
from collections import Counter

_PLACEHOLDER = "# a line that looks like a secret was left out"
_KNOWN_FORMS = re.compile(
    "|".join(
        (
            r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}",  # Hugging Face
            r"\bsk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic
            r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",  # AWS
            r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}",  # GitHub
            r"\bglpat-[\w-]{20,}",  # GitLab
            r"\bxox[a-z]-[\w-]{10,}",  # Slack
            r"\bAIza[\w-]{35}",  # Google
            r"\b(?:npm_|pypi-|dop_v1_|sk_live_|rk_live_|nvapi-|gsk_|r8_|tvly-|wandb_v1_)[\w-]{20,}",
            r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+",  # JSON Web Tokens
            r"\b[MNO][\w-]{23,40}\.[\w-]{6}\.[\w-]{27,}",  # Discord bots
            r"\b[a-z][a-z0-9+.-]{0,20}://[^\s/:@'\"]{0,99}:[^\s/:@'\"{}$<>]{3,99}@",  # a password in an address
            r"(?i:\b(?:bearer|basic))\s+(?=\S{0,99}\d)[\w+/=.~-]{20,}",  # HTTP headers
        )
    )
)
_KEY_BEGINS, _KEY_ENDS = (
    re.compile(rf"-----{w} [A-Z0-9 ]{{0,30}}PRIVATE KEY") for w in ("BEGIN", "END")
)
# `NAME = value`, `"name": "value"`, `name=value`; the value quoted, or to the next space or comma.
# Repeats are bounded: a diff may have a line of a megabyte.
_ASSIGNMENT = re.compile(
    r"""(?<![\w.-])(?P<name>[A-Za-z_][\w.-]{0,99})["']?\]?\s*(?::\s*str\s*)?(?:=>|:=|=|:)\s*"""
    r"""(?:[bruf]?"(?P<double>[^"]+)"|[bruf]?'(?P<single>[^']+)'|(?P<bare>[^\s"',;)\]}]+))"""
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of snake_case, kebab-case and camelCase
_PASSWORDS = {"password", "passwd", "pwd", "passphrase", "secret"}
_NAMES = {"key", "token", "apikey", "secretkey", "credential", "credentials", "auth", *_PASSWORDS}
_SHORTEST, _SHORTEST_PASSWORD = 16, 6
_LEAST_ENTROPY = 3.0  # bits per character; random hexadecimal digits have almost 4


def without_secrets(diff: str) -> tuple[str, int]:
    """Remove lines that look like secrets from `diff` (output of `git diff`); return it and their number.

    Each is replaced by a comment, so that hunks keep their lengths: `git apply` accepts the result,
    unless the secret was already in the commit (a removed or unchanged line). Binary patches are
    unchanged.
    """
    lines, count, in_key = diff.split("\n"), 0, False
    for index, line in enumerate(lines):
        if line.startswith("@@ "):  # git repeats the enclosing line there
            ranges, _, heading = line[3:].partition(" @@")
            if _is_secret(heading):
                lines[index], count = f"@@ {ranges} @@", count + 1
            in_key = False
            continue
        if line[:1] not in ("+", "-", " ") or line.startswith(("+++ ", "--- ")):
            in_key = False
            continue
        content = line[1:]
        in_key = in_key or bool(_KEY_BEGINS.search(content))
        if in_key or _is_secret(content):
            indentation = content[: len(content) - len(content.lstrip())]
            lines[index], count = f"{line[0]}{indentation}{_PLACEHOLDER}", count + 1
        in_key = in_key and not _KEY_ENDS.search(content)
    return "\n".join(lines), count


def _is_secret(text: str) -> bool:
    """Whether a line contains a secret of a known form, or assigns one to a telling name."""
    if _KNOWN_FORMS.search(text):
        return True
    return any(_assigns_secret(found) for found in _ASSIGNMENT.finditer(text))


def _assigns_secret(assignment: re.Match[str]) -> bool:
    words = {word.lower() for word in _WORDS.findall(assignment["name"])}
    if not words & _NAMES:
        return False
    quoted = assignment["double"] or assignment["single"]
    value = quoted or assignment["bare"]
    if "${" in value or "{{" in value or value.startswith(("<", "$", "os.")):
        return False  # a reference, not the secret itself
    if words & _PASSWORDS and quoted and len(value) >= _SHORTEST_PASSWORD and " " not in value:
        return True
    if len(value) < _SHORTEST or not re.fullmatch(r"[\w+/=.~:!@#%^&*-]+", value):
        return False  # a call, a subscript, a sentence
    has_both = re.search(r"\d", value) and re.search(r"[A-Za-z]", value)
    return bool(has_both) and _entropy(value) >= _LEAST_ENTROPY


def _entropy(text: str) -> float:
    """Entropy in bits per character, from character frequencies (Shannon 1948)."""
    shares = [number / len(text) for number in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)
