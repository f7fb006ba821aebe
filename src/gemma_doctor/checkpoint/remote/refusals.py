"""What the Hub refuses, in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from gemma_doctor.checkpoint.alike import alike
from gemma_doctor.checkpoint.quoting import quoted
from gemma_doctor.checkpoint.remote.patience import AGAIN, Again, retry_after
from gemma_doctor.checkpoint.remote.ranges import NETWORK
from gemma_doctor.errors import DoctorError, SourceNotFoundError, TransferError

__all__ = ["LOG_IN", "explaining"]

LOG_IN = "'hf auth login', HF_TOKEN or --token"
"""The ways to log in, for messages."""


@contextmanager
def explaining(repo: str, revision: str | None) -> Iterator[None]:
    """Turns what ``huggingface_hub`` raises into errors of this package.

    Args:
        repo: ``owner/name``.
        revision: The revision that was asked for; None for the default branch.

    Raises:
        SourceNotFoundError: If there is no such thing, or no access to it.
        TransferError: If the Hub cannot be reached, or refuses for another reason.
        Again: If the next try may succeed.
    """
    try:
        yield
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        raise _explained(error, repo, revision) from error
    except (LocalEntryNotFoundError, RevisionResolutionError) as error:
        raise Again(_first_line(error).rstrip(".")) from error
    except httpx2.ConnectError as error:
        raise TransferError(
            f"{constants.ENDPOINT} cannot be reached ({error}). Check the network and HF_ENDPOINT; with "
            "HF_HUB_OFFLINE=1 only the Hub's cache is read."
        ) from error
    except NETWORK as error:
        raise Again(f"the connection to {constants.ENDPOINT} broke: {str(error) or type(error).__name__}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:  # its words may hold a header, and so a token
        raise TransferError(
            f"{constants.ENDPOINT}: the request cannot be made ({type(error).__name__}). Check HF_ENDPOINT, the proxy "
            "and the token."
        ) from None


def _explained(error: Exception, repo: str, revision: str | None) -> DoctorError | Again:
    page = f"{constants.ENDPOINT}/{repo}"
    told = (
        (
            GatedRepoError,
            (
                f"a gated repository, and this account has no access. Ask for it, or accept the terms, at {page}; then "
                f"log in with {LOG_IN}."
            ),
        ),
        (
            RepositoryNotFoundError,
            (
                f"no such path here, and no such repository at {constants.ENDPOINT}, or it is private. Check the "
                f"spelling{alike(repo)}; for a private one, log in with {LOG_IN}."
            ),
        ),
        (RevisionNotFoundError, f"it has no branch, tag or commit {quoted(revision or 'main')}. See {page}."),
        (DisabledRepoError, f"the repository has been disabled, and cannot be read. See {page}."),
        ((HFValidationError, OfflineModeIsEnabled), _first_line(error)),
    )
    known = next((sentence for kind, sentence in told if isinstance(error, kind)), None)
    return _refused(error, repo) if known is None else SourceNotFoundError(f"{repo}: {known}")


def _refused(error: Exception, repo: str) -> TransferError | Again:
    response = error.response if isinstance(error, HfHubHTTPError) else None
    status = response.status_code if response is not None else 0
    if response is not None and status in AGAIN:
        return Again(f"{constants.ENDPOINT} answers {status}", retry_after(response.headers.get("Retry-After")))
    if status in (401, 403):
        return TransferError(f"{repo}: {constants.ENDPOINT} refuses ({status}). Check the token: {LOG_IN}.")
    return TransferError(f"{repo}: {constants.ENDPOINT} answers: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
