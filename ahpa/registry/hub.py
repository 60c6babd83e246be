"""Files from the Hugging Face Hub: the local cache first, then a download."""

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import UserError

HUB_SECONDS = 4  # time limit for connecting to the hub, and for its answer


def hub_file(
    source: str,
    names: Iterable[str],
    *,
    what: str,
    hint: str,
    subfolder: str | None = None,
) -> Path:
    """Find a file of a hub repository.

    Args:
        source: Repository id, OWNER/NAME.
        names: File names to try in order.
        what: What the file is, for the error message.
        hint: What the user can do if there is none.
        subfolder: Folder inside the repository.

    Returns:
        The path of the first file that exists, in the local cache.

    Raises:
        UserError: If none of them is cached or can be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import LocalEntryNotFoundError

    names = tuple(names)
    unreachable = False
    reason: Exception | None = None
    for local_only in (True, False):
        unreachable = not local_only and offline()
        if unreachable:
            break
        for name in names:
            try:
                found = hf_hub_download(
                    source,
                    name,
                    subfolder=subfolder,
                    local_files_only=local_only,
                    etag_timeout=HUB_SECONDS,
                )
                return Path(found)
            except Exception as error:  # not cached, no network, no such repository, no access ...
                reason = error
                if not local_only and isinstance(error, LocalEntryNotFoundError):
                    break  # the connection broke; the next name would only wait as long again
    said = next(iter(str(reason).strip().splitlines()), type(reason).__name__)[:160]
    if unreachable:
        answer = "the hub cannot be reached, or HF_HUB_OFFLINE is set"
    else:
        answer = f"the hub said: {said}"
    raise UserError(
        f"{what} {source!r} was not found: it is not in the local cache {HF_HUB_CACHE}, and "
        f"{answer}. {hint}"
    ) from reason


def offline() -> bool:
    """Whether the hub is switched off or unreachable, found out by a single request."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return True
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.utils import get_session  # uses the user's proxies and certificates

    try:
        get_session().head(ENDPOINT, timeout=HUB_SECONDS)
        return False
    except Exception:  # raised by whichever HTTP library the hub's client uses
        return True
