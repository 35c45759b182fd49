"""The appraisal policy: what a trust administrator demands of a host's boot, as a typed document.

A document is JSON; ``docs/policy.schema.json`` is its schema, made by :func:`policy_schema`. Unknown fields, unknown
names and repeated keys are refused: a policy never means less than its author wrote. Every default is the strict one.
Pure: text in, frozen values out.
"""

import hashlib
import json
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from attestation.errors import PolicyRejected
from attestation.model import PcrBank
from attestation.verifier.quirks import Quirk

MAX_POLICY_SIZE: Final = 64 * 1024
DEFAULT_PCRS: Final = (0, 2, 4, 7, 9, 11)
"""Firmware, option ROMs, boot loader, Secure Boot, what the kernel's EFI stub loads, sections of a unified kernel.

1, 3, 5 and 6 hold configuration that differs between equal machines; 8 and 10 to 15 are written by boot loaders and
systems that not every host has.
"""
SECURE_BOOT_PCR: Final = 7
_MAX_DENIED: Final = 1000

PolicyName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
PcrIndex = Annotated[int, Field(ge=0, le=15)]
FirmwareVersion = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class SecureBootPolicy(BaseModel):
    """What is demanded of Secure Boot."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    required: bool = Field(
        default=False,
        description="SecureBoot is on, with PK, KEK and db enrolled, and an authority of db let a boot loader run",
    )


class AppraisalPolicy(BaseModel):
    """What a host must show to be trusted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: PolicyName = Field(description="Name of the policy")
    version: int = Field(ge=1, le=2**63 - 1, description="Each change must have a greater one")
    bank: PcrBank = Field(default=PcrBank.SHA256, description="Bank to quote")
    pcrs: tuple[PcrIndex, ...] = Field(
        default=DEFAULT_PCRS,
        min_length=1,
        max_length=16,
        description="PCRs to quote; each must be explained by the log and equal a reference",
    )
    secure_boot: SecureBootPolicy = Field(default=SecureBootPolicy(), description="What is demanded of Secure Boot")
    required_startup_locality: Literal[0, 3, 4] | None = Field(
        default=None,
        description="Locality that started the TPM: 3 or 4 where a TPM that is reset alone must not pass for a reboot",
    )
    denied_firmware: tuple[FirmwareVersion, ...] = Field(
        default=(), max_length=_MAX_DENIED, description="TPM firmware versions to refuse, 16 hexadecimal digits each"
    )
    quirks: tuple[Quirk, ...] = Field(default=(), description="Oddities of firmware to let pass")
    restart_count_allowed: bool = Field(
        default=False, description="Whether a host that resumed from suspend, which nothing measures, is trusted"
    )
    safe_clock_required: bool = Field(
        default=False, description="Whether to refuse a TPM in the first seconds after it lost power"
    )

    @field_validator("pcrs", "denied_firmware", "quirks")
    @classmethod
    def _in_order(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give equal policies one form, so that they have one hash."""
        if len(set(value)) != len(value):
            raise ValueError("an entry is there twice")
        return tuple(sorted(value))

    @model_validator(mode="after")
    def _demands_are_quoted(self) -> "AppraisalPolicy":
        if self.secure_boot.required and SECURE_BOOT_PCR not in self.pcrs:
            raise ValueError("secure_boot.required needs PCR 7 among pcrs")
        if self.required_startup_locality is not None and 0 not in self.pcrs:
            raise ValueError("required_startup_locality needs PCR 0 among pcrs")
        return self

    @property
    def denied_firmware_versions(self) -> frozenset[int]:
        """The denylist as TPMS_ATTEST has it."""
        return frozenset(int(version, 16) for version in self.denied_firmware)


def parse_policy(text: str) -> AppraisalPolicy:
    """Read a policy document.

    Args:
        text: JSON, at most 64 KiB.

    Raises:
        PolicyRejected: With one line that names the field and what is wrong with it.
    """
    if len(text) > MAX_POLICY_SIZE:
        raise PolicyRejected(f"a policy has at most {MAX_POLICY_SIZE} characters, not {len(text)}")
    try:
        policy = AppraisalPolicy.model_validate_json(text)
        # pydantic lets the last of two equal keys win; an author who wrote both is owed a question.
        json.loads(text, object_pairs_hook=_refuse_repeated_keys)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
        raise PolicyRejected(" ".join(reason.split())) from exc
    except ValueError as exc:
        raise PolicyRejected(str(exc)) from exc
    return policy


def canonical_json(policy: AppraisalPolicy) -> str:
    """The policy with every field, keys sorted, no white space: equal policies, equal text."""
    return json.dumps(policy.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def canonical_hash(policy: AppraisalPolicy) -> bytes:
    """SHA-256 of :func:`canonical_json`: 32 bytes that tokens carry."""
    return hashlib.sha256(canonical_json(policy).encode()).digest()


def policy_schema() -> str:
    """JSON Schema of policy documents, as published in ``docs/policy.schema.json``."""
    return json.dumps(AppraisalPolicy.model_json_schema(), indent=2, sort_keys=True) + "\n"


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key}: the key is there twice")
    return dict(pairs)
