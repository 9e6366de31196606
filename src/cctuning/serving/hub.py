"""An export sent to the Hugging Face hub; what is on disk stays there whatever happens on the way."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from cctuning.errors import UserError


def check_push(repo_id: str) -> None:
    """Refuse before the work is done what would be refused after it.

    Raises:
        UserError: not a repository's name, or nobody is logged in.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {repo_id!r}: {error}") from error
    if get_token() is None:
        raise UserError("--push_to_hub: not logged in to the hub; run `hf auth login`, or set HF_TOKEN.")


def push(directory: Path, repo_id: str, *, private: bool) -> str:
    """Upload `directory` as the model `repo_id`, made where it does not exist, and return its address.

    Args:
        private: for a repository that is made now; one that exists keeps its visibility.

    Raises:
        UserError: it could not be uploaded; the directory is whole.
    """
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=directory, commit_message="Export of cctuning")
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"--push_to_hub {repo_id}: {first} The export is whole in {directory}; send it with "
            f"`hf upload {repo_id} {directory}`."
        ) from error
    return str(url)
