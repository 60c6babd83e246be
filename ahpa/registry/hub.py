"""Files of a hub id: from the local cache, else downloaded; and a quick answer where there is no network."""

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import UserError

HUB_SECONDS = 4  # how long the hub may take to connect, and to answer, before it counts as out of reach


def hub_file(source: str, names: Iterable[str], *, what: str, hint: str, subfolder: str | None = None) -> Path:
    """The first of these files of a hub id: from the local cache, else from the hub. UserError if there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import LocalEntryNotFoundError

    unreachable, reason = False, None
    for local in (True, False):
        unreachable = not local and offline()
        for name in () if unreachable else names:
            try:
                return Path(hf_hub_download(
                    source, name, subfolder=subfolder, local_files_only=local, etag_timeout=HUB_SECONDS))  # fmt: skip
            except Exception as error:  # not cached, no network, no such repository, no right to read: many kinds
                reason = error
                if not local and isinstance(error, LocalEntryNotFoundError):
                    break  # the connection broke: the next name would only wait as long again
    said = next(iter(str(reason).strip().splitlines()), type(reason).__name__)[:160]
    gone = "the hub cannot be reached, or HF_HUB_OFFLINE is set"
    looked = f"it is not in the local cache {HF_HUB_CACHE}, and " + (gone if unreachable else f"the hub said: {said}")
    raise UserError(f"{what} {source!r} was not found: {looked}. {hint}") from reason


def offline() -> bool:
    """Whether the hub is not to be asked, or cannot be: found out in one try, where a download makes six."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return True
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.utils import get_session  # knows the user's proxies and certificates

    try:
        get_session().head(ENDPOINT, timeout=HUB_SECONDS)
        return False
    except Exception:  # of whichever HTTP library the hub's client uses
        return True
