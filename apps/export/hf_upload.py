"""A folder as a model on the Hugging Face hub, or a mirror of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.data.hf_utils import hub_endpoint
from common.errors import ResearchError

# Files of an earlier model that would be read in place of, or beside, those of the new one.
_REPLACED = [
    *("model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json"),
]


class UploadError(ResearchError):
    """The hub does not take a model."""

    code = "upload"


def check_repo_id(repo_id: str) -> None:
    """Raise UploadError for what cannot be the name of a repository."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id):
        raise UploadError(f"'{repo_id}' is not a repository's name", "give OWNER/NAME")


def check_token() -> None:
    """Raise UploadError where there is none."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise UploadError(
            "there is no token", "set HF_TOKEN to one that may write, or hf auth login"
        )


def upload_model(
    folder: Path, repo_id: str, *, private: bool, message: str, endpoint: str | None = None
) -> str:
    """Commit the files of `folder` to a model repository, which is made if need be; its address.

    It is one commit: whoever downloads gets the old model or the new one. Of an earlier model no
    weights and no tokenizer are left; other files stay. The token is HF_TOKEN, or that of
    `hf auth login`.

    Raises UploadError: no token, one that may not write there, a public repository where a private
    one was asked for, no connection.
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
    """Turn what the client raises into one line and a fix. Anything else is a bug and passes through."""
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
            403: f"the token has to have write access to {repo_id.partition('/')[0]}",
        }.get(status, again)
        message = f"{endpoint} answered {status} for '{repo_id}'"
        raise UploadError(f"{message}: {reason}" if reason else message, hint) from error
    except (hub.HTTPError, RuntimeError, ValueError) as error:  # type: ignore[attr-defined]  # of httpx or httpx2: the client knows
        # The client's words for an upload that failed are a RuntimeError, for a refused one a ValueError.
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise UploadError(f"'{repo_id}' was not uploaded: {reason}", again) from error
