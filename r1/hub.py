"""Models and data sets of the Hugging Face hub, by id. What was fetched once comes out of the hub client's cache, also offline.

The one place that uses the network, and only for an id that the user has named. HF_TOKEN, HF_HOME and HF_HUB_OFFLINE mean what they
always mean. https://huggingface.co/docs/huggingface_hub
"""

import re
from pathlib import Path

from r1.types import UserError

MODEL_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
               "chat_template.jinja", "adapter_config.json"]


def is_id(name: str) -> bool:
    """owner/name or owner/name@revision; a stage's snapshot, zero/step20, is none."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w.-]+)?", name)) and not re.search(r"\.gguf$|/step\d+$", name)


def fetch_model(name: str, weights: bool = True) -> Path:
    """The folder of a model, without its weights where its shape will do."""
    return _fetch(name, "model", MODEL_FILES if weights else [f for f in MODEL_FILES if "safetensors" not in f])


def fetch_data(name: str, pattern: str) -> list[Path]:
    """The files of a data set that a pattern fits, e.g. main/train-*.parquet, in order."""
    if not (files := sorted(_fetch(name, "dataset", [pattern]).glob(pattern))):
        raise UserError(f"{name}: the data set has no file {pattern}")
    return files


def _fetch(name: str, kind: str, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download
    repo, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=revision or None, allow_patterns=patterns))
    except errors.GatedRepoError as e:
        raise UserError(f"{name} is open only to accounts that have accepted its terms: accept them at https://huggingface.co/{repo} and "
                        f"set HF_TOKEN") from e
    except errors.RevisionNotFoundError as e:
        raise UserError(f"{repo} has no revision {revision!r}") from e
    except errors.RepositoryNotFoundError as e:
        raise UserError(f"the hub has no {kind} {name}, or it is private and HF_TOKEN does not open it") from e
    except errors.HFValidationError as e:
        raise UserError(f"{name} is no id of the hub: {e}") from e
    except Exception as e:    # every error of the network (the client's libraries have their own kinds), and a cache that lacks it while offline
        raise UserError(f"{kind} {name} is not in the local cache and could not be fetched ({[*str(e).splitlines(), type(e).__name__][0][:200]}). Without a network, "
                        f"name a folder on disk instead, or copy the cache (HF_HOME) from a machine that has it") from e
