"""Sign an audited checkpoint with a key of your own, and verify it: nobody can change a file afterwards unseen.

An audit is about the bytes that were audited. `model-signing` (OpenSSF; pip install "recerase[sign]") signs the sha256 of
every file of a directory, and verification fails when one is changed, missing or new. The statement that `recerase report
attest` writes lies in the directory, so the signature vouches for the verdict as well. No network is needed: the key is a
plain elliptic curve key, and only its public half goes to whoever verifies.

    python examples/sign_checkpoint.py keys KEYS                   # KEYS/private.pem and KEYS/public.pem, once
    python examples/sign_checkpoint.py sign CKPT KEYS/private.pem  # CKPT.sig, beside the checkpoint
    python examples/sign_checkpoint.py verify CKPT KEYS/public.pem # exit code 0, or 1 and why

The same on model-signing's own command line: `model_signing sign key CKPT --private-key ... --signature CKPT.sig`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import signing, verifying


def make_keys(directory: Path) -> None:
    """A P-256 key pair as PEM; the private half is readable by its owner alone, and an existing one is never replaced."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    descriptor = os.open(directory / "private.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    (directory / "public.pem").write_bytes(public)


def signature_of(checkpoint: Path) -> Path:
    """Where the signature of a checkpoint lies: beside it, for it is no part of what is signed."""
    return checkpoint.with_name(f"{checkpoint.name}.sig")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("keys").add_argument("directory", type=Path)
    for name in ("sign", "verify"):
        command = commands.add_parser(name)
        command.add_argument("checkpoint", type=Path)
        command.add_argument("key", type=Path, help="the private key to sign, the public one to verify")
    given = parser.parse_args(arguments)
    if given.command == "keys":
        make_keys(given.directory)
        return 0
    checkpoint = given.checkpoint.resolve()
    if given.command == "sign":
        signer = signing.Config().use_elliptic_key_signer(private_key=given.key)
        signer.sign(checkpoint, signature_of(checkpoint))
        print(f"signed: {signature_of(checkpoint)}")
        return 0
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=given.key).verify(checkpoint, signature_of(checkpoint))
    except (ValueError, OSError) as error:
        print(f"does not verify: {error}", file=sys.stderr)
        return 1
    print(f"verified: every file of {checkpoint.name} is as it was signed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
