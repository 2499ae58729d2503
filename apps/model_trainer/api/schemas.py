"""GET /schemas/{project}: the JSON schema of a project's configuration."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from apps.model_trainer.projects import project_named, schema_of
from common.training.projects import find_projects

router = APIRouter(tags=["schemas"])


class ProjectFacts(BaseModel):
    """A project and its configurations."""

    name: str
    description: str
    configs: list[str]


@router.get("/schemas")
def list_projects() -> list[ProjectFacts]:
    """All projects that can be trained."""
    return [
        ProjectFacts(
            name=project.name,
            description=project.description,
            configs=[f"configs/{path.name}" for path in project.configs],
        )
        for project in find_projects()
    ]


@router.get("/schemas/{project}")
def schema(project: str) -> dict[str, Any]:  # a JSON schema has no fixed shape
    """The JSON schema of the configuration of a project."""
    project_named(project)
    return schema_of(project).model_json_schema()
