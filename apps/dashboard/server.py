"""The application: the page, its files, and its JSON endpoints.

The endpoints are plain functions, which FastAPI runs in threads, except those of SQL: `queries.py`
limits concurrent queries, and slow ones block nothing else.
"""

from __future__ import annotations

import json
import math
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from apps.dashboard import data
from apps.dashboard.plots import PlotRequest, draw
from apps.dashboard.queries import Queries
from apps.dashboard.runs import RunsTable
from apps.dashboard.security import ALLOWED_HOSTS, OwnPageOnly
from common.errors import MissingPackageError, ResearchError
from common.utils.tables import format_rows

STATIC = Path(__file__).parent / "static"
INSTALL = 'install it: uv pip install -e ".[dashboard]"'
SHOWN_ROWS = 1000  # of an SQL result; the CSV has all
MOST_COMPARED = 50
_EXACT_INTEGERS = 2**53  # in JavaScript


class FiniteJSON(Response):
    """JSON response with null for NaN and infinities."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        try:
            text = json.dumps(content, allow_nan=False, default=str, separators=(",", ":"))
        except ValueError:
            text = json.dumps(_finite(content), default=str, separators=(",", ":"))
        return text.encode()


class Annotation(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    add_tags: list[str] = []
    remove_tags: list[str] = []
    note: str | None = None


class Names(BaseModel):
    model_config = ConfigDict(extra="forbid")
    runs: list[str]


class Statement(BaseModel):
    model_config = ConfigDict(extra="forbid")
    sql: str


def create_app() -> FastAPI:
    """Create the application for the store of `RESEARCH_ASSETS_DIR`. Raises MissingPackageError without plotly."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC))
    app.mount("/plotly", StaticFiles(directory=find_plotly().parent))
    app.mount("/api", _create_api())
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=ALLOWED_HOSTS)
    app.add_middleware(OwnPageOnly)
    return app


def find_plotly() -> Path:
    """Path of plotly.js in the installed package, found without importing it."""
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise MissingPackageError("the dashboard needs the package plotly", INSTALL)
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


def _create_api() -> FastAPI:
    # A separate application: compress this, but not plotly.js.
    api = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    api.add_middleware(GZipMiddleware, compresslevel=3)
    api.add_exception_handler(ResearchError, _told)
    api.add_exception_handler(RequestValidationError, _malformed)
    table, cache, queries = RunsTable(), data.SeriesCache(), Queries()

    @api.get("/runs")
    def runs(since: str = "") -> FiniteJSON:
        return FiniteJSON(table.changes(since))

    @api.post("/curves")
    def curves(request: PlotRequest) -> FiniteJSON:
        return FiniteJSON(draw(request, table.config_hashes(), cache))

    @api.post("/compare")
    def compare(request: Names) -> FiniteJSON:
        known = table.config_hashes()
        names = [name for name in dict.fromkeys(request.runs) if name in known]
        compared = names[:MOST_COMPARED]
        return FiniteJSON(
            {"runs": compared, "left_out": len(names) - len(compared), **data.compare(compared)}
        )

    @api.post("/compare-seeds")
    def compare_seeds(request: Names) -> FiniteJSON:
        known = table.config_hashes()
        names = [name for name in dict.fromkeys(request.runs) if name in known]
        return FiniteJSON(data.compare_seeds(names[:MOST_COMPARED]))

    @api.get("/run")
    def run(name: str) -> FiniteJSON:
        return FiniteJSON(data.read_manifest(name))

    @api.get("/samples")
    def samples(name: str, step: int | None = None) -> FiniteJSON:
        data.check_known([name], table.config_hashes())
        return FiniteJSON(data.read_samples(name, step))

    @api.post("/annotate")
    def annotate(request: Annotation) -> FiniteJSON:
        data.check_known([request.name], table.config_hashes())
        return FiniteJSON(data.annotate(**request.model_dump())._asdict())

    @api.post("/sql")
    async def sql(statement: Statement, request: Request) -> Response:
        return await queries.run(statement.sql, request, _shown)

    @api.post("/sql.csv")
    async def sql_as_csv(statement: Statement, request: Request) -> Response:
        return await queries.run(statement.sql, request, _csv)

    return api


def _shown(columns: list[str], rows: list[list[Any]]) -> Response:
    shown = [[_cell(value) for value in row] for row in rows[:SHOWN_ROWS]]
    return FiniteJSON({"columns": columns, "rows": shown, "total": len(rows)})


def _csv(columns: list[str], rows: list[list[Any]]) -> Response:
    return PlainTextResponse(format_rows(columns, rows, "csv"))


def _told(_: Request, error: Exception) -> FiniteJSON:
    assert isinstance(error, ResearchError)
    return FiniteJSON({"error": error.message, "hint": error.hint}, status_code=400)


def _malformed(_: Request, error: Exception) -> FiniteJSON:
    assert isinstance(error, RequestValidationError)
    where = error.errors()[0]
    place = ".".join(str(part) for part in where["loc"])
    return FiniteJSON({"error": f"{place}: {where['msg']}", "hint": ""}, status_code=422)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> Any:
    """Convert a value of an SQL result to JSON: integers too large for JavaScript become strings."""
    if isinstance(value, Decimal):  # DuckDB's sums of integers
        value = int(value) if value == value.to_integral_value() else float(value)
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return value if abs(value) <= _EXACT_INTEGERS else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict | list):
        return json.dumps(value, default=str, ensure_ascii=False)
    return str(value)
