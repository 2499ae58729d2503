"""Secrets in uncommitted edits are left out of what is stored, and the rest of a diff still applies."""

from __future__ import annotations

import random
import string
import subprocess
from pathlib import Path

import pytest

from common.utils.paths import REPOSITORY_ROOT
from common.utils.secrets import without_secrets

_RANDOM = random.Random(0)


def letters(number: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(_RANDOM.choice(alphabet) for _ in range(number))


# Made here, so that no scanner takes this file for a leak.
SECRETS = [
    f'login(token="hf_{letters(34)}")',
    f"client = OpenAI('sk-proj-{letters(40)}')",
    f"# sk-ant-api03-{letters(60)}-{letters(20)}",
    f"AKIA{letters(16, string.ascii_uppercase)}",
    f"ghp_{letters(36)}",
    f"git clone https://github_pat_{letters(22)}_{letters(59)}@example.org/x.git",
    f"remote: https://someone:{letters(9)}@example.org/x.git",
    f"curl -H 'Authorization: Bearer {letters(30)}7'",
    f"AIza{letters(35)}",
    f"glpat-{letters(20)}",
    f"xoxb-{letters(12)}-{letters(24)}",
    f"eyJ{letters(20)}.eyJ{letters(40)}.{letters(43)}",
    f"WANDB_API_KEY={letters(40, '0123456789abcdef')}",
    f'os.environ["WANDB_API_KEY"] = "{letters(40, "0123456789abcdef")}"',
    f'  "secretKey": "{letters(40)}",',
    f"    aws_secret_access_key: {letters(20)}/{letters(19)}",
    f"accessToken: '{letters(32)}'",
    'password = "hunter2!"',
    f"DB_PASSWORD={letters(15)}7a",
    f"api_key: str = '{letters(24)}0a'",
]
HARMLESS = [
    "tokenizer = load_tokenizer(path)",
    'tokenizer: "openai-community--gpt2-medium-1024"',
    "tokens_per_second = count / seconds_of_the_measurement",
    'token = os.environ["HF_TOKEN"]',
    "token: ${oc.env:HF_TOKEN}",
    "HF_TOKEN=<your token>",
    'password = getpass.getpass("the password of the store: ")',
    "key = jax.random.split(keys[index], 2)[0]",
    "keys = sorted(values)",
    "num_key_value_heads: 4",
    "max_tokens = 12345678901234567890",
    "sha256: " + "0123456789abcdef" * 4,
    "token = self.tokenizer.end_of_text",
    'key = "a sentence that says what is to be pressed, 2 times"',
    "https://example.org:8080/path@2",
    "monkey = 12",
]


@pytest.mark.parametrize("sign", ["+", "-", " "])
@pytest.mark.parametrize("line", SECRETS)
def test_a_line_with_a_secret_is_left_out(line: str, sign: str) -> None:
    diff = f"--- a/x.py\n+++ b/x.py\n@@ -1,3 +1,3 @@\n-old\n{sign}{line}\n+new\n"
    found, count = without_secrets(diff)
    assert count == 1
    kept = found.split("\n")
    assert kept[:4] + kept[5:] == diff.split("\n")[:4] + diff.split("\n")[5:]
    assert kept[4].startswith(sign) and "left out" in kept[4]
    assert line.strip() not in found


@pytest.mark.parametrize("line", HARMLESS)
def test_a_line_without_one_is_kept(line: str) -> None:
    diff = f"--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-old\n+{line}\n"
    assert without_secrets(diff) == (diff, 0)


def test_the_heading_of_a_hunk_and_a_private_key_are_left_out() -> None:
    secret = f"hf_{letters(34)}"
    body = [letters(64) for _ in range(3)]
    dashes = "-" * 5
    lines = [
        f'@@ -1,2 +1,7 @@ def login(token="{secret}"):',
        " before",
        f"+{dashes}BEGIN RSA PRIVATE KEY{dashes}",
        *[f"+{line}" for line in body],
        f"+{dashes}END RSA PRIVATE KEY{dashes}",
        " after",
    ]
    found, count = without_secrets("\n".join(lines))
    assert count == 6 and "@@ -1,2 +1,7 @@\n before\n" in found and found.endswith("\n after")
    assert not any(part in found for part in [secret, *body])


def test_binary_patches_and_the_code_of_this_repository_stay_as_they_are() -> None:
    binary = f"GIT binary patch\nliteral 40\nzc${letters(20)}hf_{letters(30)}\n\nliteral 0\n"
    assert without_secrets(binary) == (binary, 0)
    for path in (REPOSITORY_ROOT / "common").rglob("*.py"):
        diff = "@@ -0,0 +1 @@\n" + "".join(f"+{x}\n" for x in path.read_text().split("\n"))
        assert without_secrets(diff) == (diff, 0), path


def test_what_is_left_applies(tmp_path: Path) -> None:
    def git(*arguments: str, text: str | None = None) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", *identity, *arguments]
        done = subprocess.run(command, cwd=tmp_path, input=text, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    git("init", "--quiet")
    file = tmp_path / "train.py"
    file.write_text("".join(f"line {number}\n" for number in range(30)))
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    lines = file.read_text().split("\n")
    lines[3:5] = ["    if True:", f'        token = "hf_{letters(34)}"', "        lr = 2"]
    lines[20] = "changed\x0c\u2028 too"
    file.write_text("\n".join(lines))
    diff, count = without_secrets(git("diff", "HEAD"))
    git("checkout", "--quiet", ".")
    git("apply", "--whitespace=nowarn", "-", text=diff)
    lines[4] = "        # a line that looks like a secret was left out"
    assert count == 1 and file.read_text() == "\n".join(lines)
