"""Names of all tags (KMIP 1.4, 9.1.3.1, and 2.1, 11.56), in the order of their numbers.

Needed to show messages to people, and to name the attributes of KMIP 2, which are items of their own.
"""

from typing import Final

FIRST: Final = 0x420001

# Two numbers of 2.x are reserved: their names are empty.
_NAMES: Final = """
Activation Date;Application Data;Application Namespace;Application Specific Information;Archive Date;
Asynchronous Correlation Value;Asynchronous Indicator;Attribute;Attribute Index;Attribute Name;Attribute Value;
Authentication;Batch Count;Batch Error Continuation Option;Batch Item;Batch Order Option;Block Cipher Mode;
Cancellation Result;Certificate;Certificate Identifier;Certificate Issuer;Certificate Issuer Alternative Name;
Certificate Issuer Distinguished Name;Certificate Request;Certificate Request Type;Certificate Subject;
Certificate Subject Alternative Name;Certificate Subject Distinguished Name;Certificate Type;Certificate Value;
Common Template Attribute;Compromise Date;Compromise Occurrence Date;Contact Information;Credential;Credential Type;
Credential Value;Criticality Indicator;CRT Coefficient;Cryptographic Algorithm;Cryptographic Domain Parameters;
Cryptographic Length;Cryptographic Parameters;Cryptographic Usage Mask;Custom Attribute;D;Deactivation Date;
Derivation Data;Derivation Method;Derivation Parameters;Destroy Date;Digest;Digest Value;Encryption Key Information;G;
Hashing Algorithm;Initial Date;Initialization Vector;Issuer;Iteration Count;IV/Counter/Nonce;J;Key;Key Block;
Key Compression Type;Key Format Type;Key Material;Key Part Identifier;Key Value;Key Wrapping Data;
Key Wrapping Specification;Last Change Date;Lease Time;Link;Link Type;Linked Object Identifier;MAC/Signature;
MAC/Signature Key Information;Maximum Items;Maximum Response Size;Message Extension;Modulus;Name;Name Type;Name Value;
Object Group;Object Type;Offset;Opaque Data Type;Opaque Data Value;Opaque Object;Operation;Operation Policy Name;P;
Padding Method;Prime Exponent P;Prime Exponent Q;Prime Field Size;Private Exponent;Private Key;
Private Key Template Attribute;Private Key Unique Identifier;Process Start Date;Protect Stop Date;Protocol Version;
Protocol Version Major;Protocol Version Minor;Public Exponent;Public Key;Public Key Template Attribute;
Public Key Unique Identifier;Put Function;Q;Q String;Qlength;Query Function;Recommended Curve;
Replaced Unique Identifier;Request Header;Request Message;Request Payload;Response Header;Response Message;
Response Payload;Result Message;Result Reason;Result Status;Revocation Message;Revocation Reason;
Revocation Reason Code;Key Role Type;Salt;Secret Data;Secret Data Type;Serial Number;Server Information;Split Key;
Split Key Method;Split Key Parts;Split Key Threshold;State;Storage Status Mask;Symmetric Key;Template;
Template Attribute;Time Stamp;Unique Batch Item ID;Unique Identifier;Usage Limits;Usage Limits Count;
Usage Limits Total;Usage Limits Unit;Username;Validity Date;Validity Indicator;Vendor Extension;Vendor Identification;
Wrapping Method;X;Y;Password;Device Identifier;Encoding Option;Extension Information;Extension Name;Extension Tag;
Extension Type;Fresh;Machine Identifier;Media Identifier;Network Identifier;Object Group Member;Certificate Length;
Digital Signature Algorithm;Certificate Serial Number;Device Serial Number;Issuer Alternative Name;
Issuer Distinguished Name;Subject Alternative Name;Subject Distinguished Name;X.509 Certificate Identifier;
X.509 Certificate Issuer;X.509 Certificate Subject;Key Value Location;Key Value Location Value;Key Value Location Type;
Key Value Present;Original Creation Date;PGP Key;PGP Key Version;Alternative Name;Alternative Name Value;
Alternative Name Type;Data;Signature Data;Data Length;Random IV;MAC Data;Attestation Type;Nonce;Nonce ID;Nonce Value;
Attestation Measurement;Attestation Assertion;IV Length;Tag Length;Fixed Field Length;Counter Length;
Initial Counter Value;Invocation Field Length;Attestation Capable Indicator;Offset Items;Located Items;
Correlation Value;Init Indicator;Final Indicator;RNG Parameters;RNG Algorithm;DRBG Algorithm;FIPS186 Variation;
Prediction Resistance;Random Number Generator;Validation Information;Validation Authority Type;
Validation Authority Country;Validation Authority URI;Validation Version Major;Validation Version Minor;
Validation Type;Validation Level;Validation Certificate Identifier;Validation Certificate URI;Validation Vendor URI;
Validation Profile;Profile Information;Profile Name;Server URI;Server Port;Streaming Capability;
Asynchronous Capability;Attestation Capability;Unwrap Mode;Destroy Action;Shredding Algorithm;RNG Mode;
Client Registration Method;Capability Information;Key Wrap Type;Batch Undo Capability;Batch Continue Capability;
PKCS#12 Friendly Name;Description;Comment;Authenticated Encryption Additional Data;Authenticated Encryption Tag;
Salt Length;Mask Generator;Mask Generator Hashing Algorithm;P Source;Trailer Field;Client Correlation Value;
Server Correlation Value;Digested Data;Certificate Subject CN;Certificate Subject O;Certificate Subject OU;
Certificate Subject Email;Certificate Subject C;Certificate Subject ST;Certificate Subject L;Certificate Subject UID;
Certificate Subject Serial Number;Certificate Subject Title;Certificate Subject DC;Certificate Subject DN Qualifier;
Certificate Issuer CN;Certificate Issuer O;Certificate Issuer OU;Certificate Issuer Email;Certificate Issuer C;
Certificate Issuer ST;Certificate Issuer L;Certificate Issuer UID;Certificate Issuer Serial Number;
Certificate Issuer Title;Certificate Issuer DC;Certificate Issuer DN Qualifier;Sensitive;Always Sensitive;Extractable;
Never Extractable;Replace Existing;Attributes;Common Attributes;Private Key Attributes;Public Key Attributes;
Extension Enumeration;Extension Attribute;Extension Parent Structure Tag;Extension Description;Server Name;
Server Serial Number;Server Version;Server Load;Product Name;Build Level;Build Date;Cluster Info;
Alternate Failover Endpoints;Short Unique Identifier;Reserved;Tag;Certificate Request Unique Identifier;NIST Key Type;
Attribute Reference;Current Attribute;New Attribute;;;Certificate Request Value;Log Message;Profile Version;
Profile Version Major;Profile Version Minor;Protection Level;Protection Period;Quantum Safe;Quantum Safe Capability;
Ticket;Ticket Type;Ticket Value;Request Count;Rights;Objects;Operations;Right;Endpoint Role;Defaults Information;
Object Defaults;Ephemeral;Server Hashed Password;One Time Password;Hashed Password;Adjustment Type;PKCS#11 Interface;
PKCS#11 Function;PKCS#11 Input Parameters;PKCS#11 Output Parameters;PKCS#11 Return Code;Protection Storage Mask;
Protection Storage Masks;Interop Function;Interop Identifier;Adjustment Value;Common Protection Storage Masks;
Private Protection Storage Masks;Public Protection Storage Masks
"""

NAME_OF_TAG: Final = {
    number: name for number, name in enumerate(_NAMES.strip().replace(";\n", ";").split(";"), FIRST) if name
}
"""As the specification writes them: 0x420028 is "Cryptographic Algorithm"."""

TAG_OF_NAME: Final = {name: number for number, name in NAME_OF_TAG.items()}
