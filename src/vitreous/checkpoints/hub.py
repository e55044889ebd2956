"""Model files on the Hugging Face hub, through its own client and only when asked.

An address is ``hf://user/name``, ``hf://user/name/file`` or either with ``@revision`` behind it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vitreous.errors import VitreousError

SCHEME = "hf://"
FILE = "model.safetensors"
_PART = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_ADDRESS = re.compile(
    rf"(?P<repository>{_PART}/{_PART})(?:/(?P<file>[\w./ -]+))?(?:@(?P<revision>[\w./-]+))?"
)


def is_remote(path: str | Path) -> bool:
    """Tell whether a name is an address on the hub."""
    return str(path).startswith(SCHEME)


def local(path: str | Path) -> Path:
    """Return a file on this machine: ``path`` itself, or what it names on the hub, fetched where it is not cached.

    Raises:
        VitreousError: no address, the client is not installed, or the file cannot be fetched.
    """
    if not is_remote(path):
        return Path(path)
    address = _ADDRESS.fullmatch(str(path).removeprefix(SCHEME))
    if address is None or ".." in str(path):
        raise VitreousError(
            f"{path} is not a Hugging Face hub address.",
            f"Write it as {SCHEME}user/name or {SCHEME}user/name/file.",
        )
    client = _client()
    try:
        return Path(
            client.hf_hub_download(
                address["repository"], address["file"] or FILE, revision=address["revision"]
            )
        )
    except (OSError, ValueError, client.utils.HfHubHTTPError) as error:
        raise VitreousError(
            f"{path} cannot be downloaded: {_first_line(error)}.",
            "Check the address and the connection, or sign in with 'hf auth login'.",
        ) from error


def push(path: Path, repository: str) -> None:
    """Upload a model file as the repository's ``model.safetensors``; the repository is made where it is not there.

    Raises:
        VitreousError: no name of a repository, the client is not installed, or the hub refuses.
    """
    check_repository(repository)
    client = _client()
    try:
        hub = client.HfApi()
        hub.create_repo(repository, exist_ok=True)
        hub.upload_file(path_or_fileobj=str(path), path_in_repo=FILE, repo_id=repository)
    except (OSError, ValueError, client.utils.HfHubHTTPError) as error:
        raise VitreousError(
            f"{path} was written, but not uploaded to {repository}: {_first_line(error)}.",
            "Check the name and the connection, or sign in with 'hf auth login'.",
        ) from error


def check_repository(repository: str) -> None:
    """Refuse what cannot be uploaded, before anything is written for it.

    Raises:
        VitreousError: no name of a repository, or the client is not installed.
    """
    if _REPOSITORY.fullmatch(repository) is None:
        raise VitreousError(
            f"'{repository}' is not a valid repository name.", "Write it as user/name."
        )
    _client()


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ImportError as error:
        raise VitreousError(
            "The Hugging Face hub needs the package huggingface_hub.",
            "Install it: pip install 'vitreous[hub]'.",
        ) from error
    return huggingface_hub


def _first_line(error: Exception) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__).rstrip(".")
