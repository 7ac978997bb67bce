"""Passwords that are kept as hashes, one user a line, as in an htpasswd file.

    prometheus:$scrypt$ln=15,r=8,p=3$SALT$HASH

The hash is scrypt of the standard library in the PHC string format (salt and hash in base64 without padding), which
passlib and others read and write too. `nezha-ds hash-password NAME` makes a line. Its cost is OWASP's for 32 MiB: 0.8 s
a check on a slow core, which a right password pays once (see access.py).
"""

import base64
import binascii
import hashlib
import hmac
import os
import re
from dataclasses import dataclass
from pathlib import Path

from nezha_ds.errors import ConfigError, LaunchError

COST = (15, 8, 3)
"""ln, r, p: https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html#scrypt."""
MAX_BYTES = 128 << 20
"""Memory that one check may take; a line that asks for more is refused."""
MAX_PASSES = 16
"""The largest p."""

_NAME = re.compile(r"[^:\s][^:\r\n]*")
_PHC = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]{11,86})\$([A-Za-z0-9+/]{22,86})")


@dataclass(frozen=True)
class Hash:
    """One password's hash, with what it takes to compute it again."""

    ln: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    def fits(self, password: bytes) -> bool:
        """Whether it is this password's; the time tells nothing of how near a wrong one is."""
        return hmac.compare_digest(_scrypt(password, self.salt, self.ln, self.r, self.p, len(self.digest)), self.digest)

    def __str__(self) -> str:
        return f"$scrypt$ln={self.ln},r={self.r},p={self.p}${_base64(self.salt)}${_base64(self.digest)}"


DECOY = Hash(*COST, salt=bytes(16), digest=bytes(32))
"""Checked for a user that does not exist, so that the time does not tell who does."""


def users_line(name: str, password: str) -> str:
    """The line of the users file for a user; ConfigError for a name that cannot stand in one."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"the name {name!r} cannot stand in a users file; choose one without colon and line break")
    if not password:
        raise ConfigError("the password is empty; give one of at least 16 random characters")
    salt = os.urandom(16)
    return f"{name}:{Hash(*COST, salt, _scrypt(password.encode(), salt, *COST, 32))}"


def read_users(path: Path) -> dict[str, Hash]:
    """User -> hash. LaunchError names the file and the line that is not one; empty lines and `# …` are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise LaunchError(f"exporter.users_file {path} cannot be read ({reason}); name a readable file") from None
    users: dict[str, Hash] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            name, _, text = line.rstrip().partition(":")
            found = _parse(text)
            if not _NAME.fullmatch(name) or found is None:
                raise LaunchError(
                    f"exporter.users_file {path}: line {number} is not NAME:$scrypt$…; make it with "
                    "`nezha-ds hash-password NAME`"
                )
            users[name] = found
    if not users:
        raise LaunchError(f"exporter.users_file {path} names no user; add one with `nezha-ds hash-password NAME`")
    return users


def _parse(text: str) -> Hash | None:
    """What a PHC string holds; None where it is none, or asks for more than a check may take."""
    found = _PHC.fullmatch(text)
    if not found:
        return None
    ln, r, p = (int(found[group]) for group in (1, 2, 3))
    if not (ln and r and 0 < p <= MAX_PASSES) or 128 * r << ln > MAX_BYTES:
        return None
    try:
        salt, digest = (base64.b64decode(found[group] + "=" * (-len(found[group]) % 4)) for group in (4, 5))
    except binascii.Error:
        return None
    return Hash(ln, r, p, salt, digest)


def _scrypt(password: bytes, salt: bytes, ln: int, r: int, p: int, size: int) -> bytes:
    # OpenSSL counts p blocks and its own tables towards the limit, beside the 128 · r · 2^ln of the algorithm.
    return hashlib.scrypt(password, salt=salt, n=1 << ln, r=r, p=p, maxmem=(128 * r << ln) + (1 << 20), dklen=size)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")
