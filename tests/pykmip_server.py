"""PyKMIP's server with what key servers have and it lacks: AddAttribute, and the client's own "x-" attributes.

Run as a process of its own (see ``tests.kmip_server``). Engine, sessions, operations and access control are PyKMIP's;
the accepting loop is ours, for its own starts a second process and takes ten seconds to stop. Ends when its input ends.

python -m tests.pykmip_server DIRECTORY PORT    with ca.pem and server.pem inside; 0 for any port; prints its port
"""
# mypy: ignore-errors
# PyKMIP has no types.

import logging
import os
import socket
import sqlite3
import ssl
import sys
import threading
import warnings
from pathlib import Path

warnings.simplefilter("ignore")

from kmip.core import enums, exceptions, objects, policy  # noqa: E402
from kmip.core.attributes import CustomAttribute  # noqa: E402
from kmip.core.factories.payloads.request import RequestPayloadFactory  # noqa: E402
from kmip.core.factories.payloads.response import ResponsePayloadFactory  # noqa: E402
from kmip.core.messages import payloads  # noqa: E402
from kmip.services.server import engine, session  # noqa: E402
from kmip.services.server.policy import AttributePolicy  # noqa: E402

# AddAttribute's payloads have the same fields as ModifyAttribute's.
RequestPayloadFactory._create_add_attribute_payload = RequestPayloadFactory._create_modify_attribute_payload
ResponsePayloadFactory._create_add_attribute_payload = ResponsePayloadFactory._create_modify_attribute_payload


def _own(name: str) -> bool:
    return name.startswith("x-")


def _attribute(name: str, value: str):
    return objects.Attribute(objects.Attribute.AttributeName(name), None, CustomAttribute(value))


class _Policy(AttributePolicy):
    """Says that "x-" attributes are supported, single-valued and the client's to change."""

    def is_attribute_supported(self, attribute):
        return _own(attribute) or super().is_attribute_supported(attribute)

    def is_attribute_deprecated(self, attribute):
        return not _own(attribute) and super().is_attribute_deprecated(attribute)

    def is_attribute_modifiable_by_client(self, attribute):
        return _own(attribute) or super().is_attribute_modifiable_by_client(attribute)

    def is_attribute_applicable_to_object_type(self, attribute, object_type):
        return _own(attribute) or super().is_attribute_applicable_to_object_type(attribute, object_type)

    def is_attribute_multivalued(self, attribute):
        return not _own(attribute) and super().is_attribute_multivalued(attribute)


class Engine(engine.KmipEngine):
    """PyKMIP's engine with AddAttribute and "x-" attributes, which lie in a table of their own."""

    def __init__(self, directory: Path):
        super().__init__(policies=dict(policy.policies), database_path=str(directory / "kmip.sqlite"))
        self._own_attributes = sqlite3.connect(
            directory / "own.sqlite", check_same_thread=False, isolation_level=None, timeout=10
        )
        self._own_attributes.execute("CREATE TABLE IF NOT EXISTS own (id, name, value, PRIMARY KEY (id, name))")
        self._new = []

    def _set_protocol_version(self, protocol_version):
        super()._set_protocol_version(protocol_version)
        self._attribute_policy = _Policy(protocol_version)

    def _process_operation(self, operation, payload):
        if operation != enums.Operation.ADD_ATTRIBUTE:
            return super()._process_operation(operation, payload)
        target = self._get_object_with_access_controls(payload.unique_identifier, enums.Operation.MODIFY_ATTRIBUTE)
        name = payload.attribute.attribute_name.value
        if not _own(name):
            raise exceptions.InvalidField(f"AddAttribute adds x- attributes only, not {name}.")
        if self._read(target.unique_identifier).get(name) is not None:
            raise exceptions.IllegalOperation(f"The object has the attribute {name}.")
        value = payload.attribute.attribute_value.value
        self._write(target.unique_identifier, name, value)
        return payloads.ModifyAttributeResponsePayload(payload.unique_identifier, _attribute(name, value))

    def _process_create(self, payload):
        return self._keep_new(super()._process_create(payload))

    def _process_register(self, payload):
        return self._keep_new(super()._process_register(payload))

    def _process_locate(self, payload):
        asked = [each for each in payload.attributes or [] if _own(each.attribute_name.value)]
        payload.attributes = [each for each in payload.attributes or [] if each not in asked]
        found = super()._process_locate(payload)
        wanted = {each.attribute_name.value: each.attribute_value.value for each in asked}.items()
        found.unique_identifiers = [key for key in found.unique_identifiers if wanted <= self._read(key).items()]
        return found

    def _set_attribute_on_managed_object(self, managed_object, attribute):
        name, value = attribute
        if not _own(name):
            super()._set_attribute_on_managed_object(managed_object, attribute)
        elif managed_object.unique_identifier is None:
            self._new.append((name, value.value))
        else:
            self._write(managed_object.unique_identifier, name, value.value)

    def _get_attributes_from_managed_object(self, managed_object, attr_names):
        standard = [name for name in attr_names if not _own(name)]
        found = []
        if standard or not attr_names:
            found = super()._get_attributes_from_managed_object(managed_object, standard)
        own = self._read(managed_object.unique_identifier)
        for name in attr_names or own:
            if name in own:
                found.append(_attribute(name, own[name]))
        return found

    def _keep_new(self, made):
        for name, value in self._new:
            self._write(made.unique_identifier, name, value)
        self._new.clear()
        return made

    def _read(self, key):
        return dict(self._own_attributes.execute("SELECT name, value FROM own WHERE id = ?", (str(key),)))

    def _write(self, key, name, value):
        self._own_attributes.execute("INSERT OR REPLACE INTO own VALUES (?, ?, ?)", (str(key), name, value))


def main(directory: Path, port: int) -> None:
    """Serve until the input ends."""
    logging.getLogger("kmip").addHandler(logging.FileHandler(directory / "server.log"))
    logging.getLogger("kmip").setLevel(logging.WARNING)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(directory / "ca.pem")
    context.load_cert_chain(directory / "server.pem")
    served = Engine(directory)
    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            plain, address = listener.accept()
            try:
                connection = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            except OSError:
                continue
            thread = session.KmipSession(served, connection, address)
            thread.daemon = True
            thread.start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
