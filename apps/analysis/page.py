"""A self-contained HTML page that is safe with untrusted text.

Three independent protections: Python escapes all text in the page, scripts write text only as
`textContent`, and the page's content security policy allows only our scripts and styles (by hash)
and no URL.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from common.utils.files import write_text_atomic

_STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True)
class Page:
    """Displayed in a notebook in a frame of `height` pixels; `write` saves an HTML file."""

    html: str = field(repr=False)
    height: int = 480

    def write(self, path: Path) -> None:
        write_text_atomic(path, self.html)

    def _repr_html_(self) -> str:
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{escape(self.html)}" '
            f'style="width:100%;height:{self.height}px;border:1px solid #ccc"></iframe>'
        )


def make_page(title: str, body: str, script: str, data: Any = None, height: int = 480) -> Page:
    """Create the page `title` with `body`, escaped HTML.

    Args:
        script: a file in static/, run after page.js at the end of the page.
        data: any JSON, available to the script as `DATA`.
    """
    style = _read("page.css")
    code = f'"use strict";\n{_read("page.js")}\n{_read(script)}'
    policy = (
        f"default-src 'none'; script-src {_hash(code)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    # Within <script>, "<" could start "</script>" or "<!--"; escape it in the JSON.
    content = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    content = content.replace("<", "\\u003c")
    return Page(
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
<script type="application/json" id="data">{content}</script>
<script>{code}</script>
</body>
</html>
""",
        height,
    )


def facts(pairs: dict[str, str]) -> str:
    """Format named numbers for the top of a page."""
    items = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _read(name: str) -> str:
    return (_STATIC / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
