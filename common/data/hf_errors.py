"""Translate errors of the Hugging Face clients into a cause and a fix."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from common.errors import DownloadError, ResearchError

AGAIN = "run it again: complete files are not downloaded twice"
Kind = Literal["dataset", "model"]


@contextmanager
def explained(kind: Kind, name: str, revision: str | None, endpoint: str) -> Iterator[None]:
    """Turn client errors in the block into DownloadErrors with a fix. Other errors are bugs and pass through."""
    try:
        yield
    except ResearchError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause:  # the clients wrap the reason several times
            if explanation := _explain(cause, kind, name, revision, endpoint):
                raise DownloadError(*explanation) from error
            cause = cause.__cause__ or cause.__context__
        if type(error).__module__.split(".")[0] in ("datasets", "pyarrow"):
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            hint = f"see {endpoint}/datasets/{name}"
            raise DownloadError(f"`datasets` cannot read '{name}': {reason}", hint) from error
        raise


def _explain(
    error: BaseException, kind: Kind, name: str, revision: str | None, endpoint: str
) -> tuple[str, str] | None:
    """A message and a hint, or None if the reason is further down the chain of causes."""
    from huggingface_hub import errors as hub

    page = f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
    log_in = "set HF_TOKEN or run `hf auth login`"
    match error:
        case hub.GatedRepoError():
            return f"{kind} '{name}' is gated", f"accept its terms on {page}, then {log_in}"
        case hub.RepositoryNotFoundError():
            hint = f"check the name (OWNER/NAME); if it is private, {log_in}"
            return f"{endpoint} has no {kind} '{name}', or denies access", hint
        case hub.RevisionNotFoundError():
            return f"{kind} '{name}' has no revision '{revision}'", f"branches and tags: {page}"
        case hub.HFValidationError():
            return f"'{name}' is not a repository name", "pass OWNER/NAME, as on its page"
        case hub.OfflineModeIsEnabled():
            return f"{kind} '{name}' is not on disk, the client is offline", "unset HF_HUB_OFFLINE"
        case hub.HfHubHTTPError(response=response):
            status, token = response.status_code, f"check your token: {log_in}"
            hint = {401: token, 403: token, 404: "check HF_ENDPOINT"}.get(status, AGAIN)
            return f"{endpoint} answered {status} for {kind} '{name}'", hint
        case hub.HTTPError():  # type: ignore[attr-defined]  # of httpx or httpx2: the client knows
            hint = f"check the network and HF_ENDPOINT, then {AGAIN}"
            return f"no connection to {endpoint}: {error}", hint
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return "the disk is full", "free some space, or set RESEARCH_ASSETS_DIR and HF_HOME"
    text = str(error)
    # A download that ended early, over HTTP and over Xet storage.
    if "Consistency check failed" in text or "CAS Client Error" in text:
        return f"the connection to {endpoint} was cut", AGAIN
    if "Dataset scripts are no longer supported" in text:
        hint = "the hub may have a converted copy: --revision refs/convert/parquet"
        return f"dataset '{name}' is a Python script, which is not run", hint
    return None
