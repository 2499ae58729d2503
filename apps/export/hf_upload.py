"""Upload a folder as a model to the Hugging Face hub, or a mirror of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.data.hf_utils import hub_endpoint
from common.errors import ResearchError

# Files of an earlier model that would be loaded instead of, or in addition to, the new ones.
_REPLACED = [
    *("model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json"),
]


class UploadError(ResearchError):
    """The hub does not accept a model."""

    code = "upload"


def check_repo_id(repo_id: str) -> None:
    """Raise UploadError for an invalid repository name."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id):
        raise UploadError(f"'{repo_id}' is not a repository name", "pass OWNER/NAME")


def check_token() -> None:
    """Raise UploadError without a token."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise UploadError(
            "there is no token", "set HF_TOKEN to one that may write, or hf auth login"
        )


def upload_model(
    folder: Path, repo_id: str, *, private: bool, message: str, endpoint: str | None = None
) -> str:
    """Commit the files of `folder` to a model repository, created if missing; return its URL.

    A single commit: downloads get the old model or the new one. Weights and tokenizer of an earlier
    model are removed; other files are kept. The token is HF_TOKEN, or that of `hf auth login`.

    Raises UploadError: no token, no write access, a public repository with --private, no
    connection.
    """
    from huggingface_hub import HfApi, get_token

    check_repo_id(repo_id)
    if get_token() is None:
        raise UploadError(
            "there is no token", "set HF_TOKEN to one that may write, or hf auth login"
        )
    endpoint = hub_endpoint(endpoint)
    api = HfApi(endpoint=endpoint)
    with _explained(repo_id, endpoint):
        api.create_repo(repo_id, private=private, exist_ok=True)
        # An existing repository keeps its visibility.
        if private and not api.repo_info(repo_id).private:
            raise UploadError(
                f"'{repo_id}' exists and is public", "choose another name, or leave out --private"
            )
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=message,
            delete_patterns=_REPLACED,
        )
    return f"{endpoint}/{repo_id}"


@contextmanager
def _explained(repo_id: str, endpoint: str) -> Iterator[None]:
    """Turn client errors into UploadErrors with a fix. Other errors are bugs and pass through."""
    from huggingface_hub import errors as hub

    again = "run it again: nothing of the repository has changed"
    try:
        yield
    except hub.OfflineModeIsEnabled as error:
        raise UploadError("the client is offline", "unset HF_HUB_OFFLINE") from error
    except hub.HfHubHTTPError as error:
        status = error.response.status_code
        reason = " ".join((error.server_message or "").split())[:300]
        hint = {
            401: "check your token: HF_TOKEN, or hf auth login",
            403: f"the token needs write access to {repo_id.partition('/')[0]}",
        }.get(status, again)
        message = f"{endpoint} answered {status} for '{repo_id}'"
        raise UploadError(f"{message}: {reason}" if reason else message, hint) from error
    except (hub.HTTPError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]  # of httpx or httpx2: the client knows
        # The client raises RuntimeError for a failed upload, ValueError for a rejected one.
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise UploadError(f"'{repo_id}' was not uploaded: {reason}", again) from error
