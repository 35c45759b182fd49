"""Configuration files of the daemons: TOML, typed, unknown keys refused.

Relative paths in a file are taken from the file's own directory.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo

from serving.errors import ConfigError

Model = TypeVar("Model", bound=BaseModel)


def _resolve(path: Path, info: ValidationInfo) -> Path:
    base: Path = (info.context or {}).get("base", Path())
    return base / path


FilePath = Annotated[Path, AfterValidator(_resolve)]
"""A path, resolved against the configuration file's directory."""


class Settings(BaseModel):
    """Base of all configuration models."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a file.

        Raises:
            ConfigError: Missing, not TOML, or a key is wrong; the message names file and key.
        """
        return load_settings(cls, path)


class ListenerSettings(Settings):
    """A port with TLS."""

    address: str
    """``host:port``."""
    certificate: FilePath
    private_key: FilePath


def load_settings(model: type[Model], path: Path) -> Model:
    """Read a TOML file into ``model``.

    Raises:
        ConfigError: Missing, not TOML, or a key is wrong.
    """
    try:
        data = tomllib.loads(path.read_text())
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not TOML: {exc}") from exc
    try:
        return model.model_validate(data, context={"base": path.resolve().parent})
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from exc
