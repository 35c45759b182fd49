"""Endorsement and attestation keys inside the TPM: their templates, loading, authorisation, recognition.

Every context manager here unloads what it loaded, whatever happens.
"""

import contextlib
import hashlib
from collections.abc import Iterator

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_RH,
    TPM2_SE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPMT_PUBLIC,
    TPMT_SYM_DEF,
)

from attestation.attester.endorsement import EndorsementProfile
from attestation.attester.nv import list_handles, read_nv

_AK_ATTRIBUTES = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.USERWITHAUTH
    | TPMA_OBJECT.NODA
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.SIGN_ENCRYPT
)


def attestation_template() -> TPM2B_PUBLIC:
    """Template of the attestation key: restricted, ECDSA P-256 with SHA-256, not subject to dictionary lockout."""
    return TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=_AK_ATTRIBUTES, nameAlg="sha256")


def endorsement_template(esapi: ESAPI, profile: EndorsementProfile) -> TPM2B_PUBLIC:
    """Template of an endorsement key in this TPM: its own from NV if it has one, else the profile's."""
    stored = read_nv(esapi, profile.template_index)
    if stored is not None:
        area, _ = TPMT_PUBLIC.unmarshal(stored)
        return TPM2B_PUBLIC(publicArea=area)
    nonce = read_nv(esapi, profile.nonce_index) if profile.nonce_index is not None else None
    return profile.public_template(nonce or b"")


@contextlib.contextmanager
def loaded_primary(esapi: ESAPI, template: TPM2B_PUBLIC) -> Iterator[tuple[ESYS_TR, TPM2B_PUBLIC]]:
    """Make a primary key of the endorsement hierarchy, and flush it at the end."""
    handle, public, _, _, _ = esapi.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT)
    try:
        yield handle, public
    finally:
        esapi.flush_context(handle)


@contextlib.contextmanager
def loaded_persistent(esapi: ESAPI, handle: int) -> Iterator[tuple[ESYS_TR, TPM2B_PUBLIC] | None]:
    """Find a persistent key; None if the handle is not in use."""
    if handle not in list_handles(esapi, handle):
        yield None
        return
    loaded = esapi.tr_from_tpmpublic(handle)
    try:
        public, _, _ = esapi.read_public(loaded)
        yield loaded, public
    finally:
        esapi.tr_close(loaded)


@contextlib.contextmanager
def endorsement_authorisation(esapi: ESAPI, profile: EndorsementProfile) -> Iterator[ESYS_TR]:
    """Session that authorises the use of an endorsement key: password or policy, by its range."""
    if profile.high_range:
        yield ESYS_TR.PASSWORD
        return
    session = esapi.start_auth_session(
        ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), TPM2_ALG.SHA256
    )
    try:
        esapi.policy_secret(ESYS_TR.ENDORSEMENT, session)
        yield session
    finally:
        esapi.flush_context(session)


def same_template(public: TPM2B_PUBLIC, template: TPM2B_PUBLIC) -> bool:
    """Compare two public areas but for ``unique``, which is what the TPM fills in."""
    areas = []
    for source in (public, template):
        area, _ = TPMT_PUBLIC.unmarshal(marshal_public(source))
        area.unique = template.publicArea.unique
        areas.append(area.marshal())
    return bool(areas[0] == areas[1])


def is_endorsement_primary(esapi: ESAPI, handle: ESYS_TR) -> bool:
    """Check the qualified name (TPM 2.0 Part 1, 16.2.4): it shows the parent, which the public area does not."""
    _, name, qualified = esapi.read_public(handle)
    expected = hashlib.sha256(int(TPM2_RH.ENDORSEMENT).to_bytes(4, "big") + bytes(name)).digest()
    return bytes(qualified) == int(TPM2_ALG.SHA256).to_bytes(2, "big") + expected


def marshal_public(public: TPM2B_PUBLIC) -> bytes:
    """TPMT_PUBLIC, marshalled."""
    area = public.publicArea
    return bytes(area.marshal())
