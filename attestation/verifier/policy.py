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
from attestation.model import LogKind, PcrBank
from attestation.verifier.ima_policy import ImaPolicy
from attestation.verifier.quirks import Quirk

MAX_POLICY_SIZE: Final = 3 * 1024 * 1024
"""Room for some 20,000 allowed files."""
DEFAULT_PCRS: Final = (0, 2, 4, 7, 9, 11)
"""Firmware, option ROMs, boot loader, Secure Boot, what the kernel's EFI stub loads, sections of a unified kernel.

1, 3, 5 and 6 hold configuration that differs between equal machines; 8 and 10 to 15 are written by boot loaders and
systems that not every host has.
"""
SECURE_BOOT_PCR: Final = 7
IMA_PCR: Final = 10
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
    systemd_log: bool = Field(
        default=False,
        description="Whether systemd measures on the hosts: its own log is asked for, and explains PCRs 9, 11 and 15",
    )
    ima: ImaPolicy | None = Field(
        default=None, description="Which files a host may have run since it booted; null: files are not looked at"
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
        if self.ima is not None and IMA_PCR not in self.pcrs:
            raise ValueError("ima needs PCR 10 among pcrs")
        if not self.boot_pcrs:
            raise ValueError("PCR 10 alone says nothing of what booted: pcrs needs others")
        return self

    @property
    def boot_pcrs(self) -> tuple[int, ...]:
        """The PCRs that the boot is held against: all that are quoted, but for that of the list of measured files."""
        return self.pcrs if self.ima is None else tuple(pcr for pcr in self.pcrs if pcr != IMA_PCR)

    @property
    def logs(self) -> tuple[LogKind, ...]:
        """The logs to ask a host for."""
        demanded = {LogKind.TCG: True, LogKind.IMA: self.ima is not None, LogKind.SYSTEMD: self.systemd_log}
        return tuple(kind for kind, wanted in demanded.items() if wanted)

    @property
    def denied_firmware_versions(self) -> frozenset[int]:
        """The denylist as TPMS_ATTEST has it."""
        return frozenset(int(version, 16) for version in self.denied_firmware)


def parse_policy(text: str) -> AppraisalPolicy:
    """Read a policy document.

    Args:
        text: JSON, at most 3 MiB.

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
    read: dict[str, object] = {}
    for key, value in pairs:
        if key in read:
            raise ValueError(f"{key}: the key is there twice")
        read[key] = value
    return read
