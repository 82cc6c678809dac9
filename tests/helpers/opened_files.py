"""What the encrypted files of a home hold, free pages and logs too, decrypted without SQLCipher.

Pages are as its documentation says: AES-256-CBC, with the vector and an HMAC at the page's end.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pfi.privacy.crypto.sealing import unseal
from pfi.profile.home import Home

PAGE, RESERVED = 4096, 80
_SHA = re.compile(rb'"sealed":"([^"]*)"\}.*?"sha256":"([0-9a-f]{64})"')


def opened(home: Home) -> dict[str, bytes]:
    """The bytes of every file of a home by its name in it, those of sealed adapters as they are."""
    files = [file for file in home.path.rglob("*") if file.is_file()]
    return {str(file.relative_to(home.path)): _opened(home, file) for file in files}


def opened_file(home: Home, file: Path) -> bytes:
    """The decrypted bytes of one."""
    return _opened(home, file)


def _opened(home: Home, file: Path) -> bytes:
    data, name = file.read_bytes(), file.name
    if name.endswith("-wal"):
        frames = range(32, len(data), 24 + PAGE)
        pages = [data[start + 24 : start + 24 + PAGE] for start in frames]
        return b"".join(_page(_key(home, name), page) for page in pages)
    if name.endswith(".db"):
        return b"".join(
            _page(_key(home, name), data[n : n + PAGE]) for n in range(0, len(data), PAGE)
        )
    if name == "ledger.jsonl":
        context = f"{home.keys.profile}|ledger|"
        for cipher, sha in _SHA.findall(data):
            text = unseal(home.keys.files, base64.b64decode(cipher), context + sha.decode())
            data = data.replace(cipher, text)
    return data


def _key(home: Home, name: str) -> bytes:
    return home.keys.database(name.partition(".")[0])


def _page(key: bytes, page: bytes) -> bytes:
    """A page without its vector and HMAC; the first page of a file starts with the salt."""
    vector = page[PAGE - RESERVED : PAGE - RESERVED + 16]
    plain = b""
    for start in (0, 16):
        decryptor = Cipher(algorithms.AES(key), modes.CBC(vector)).decryptor()
        plain = decryptor.update(page[start : PAGE - RESERVED]) + decryptor.finalize()
        if start == 0 and not page.startswith(_salt(key)):
            break
    return plain


def _salt(key: bytes) -> bytes:
    from pfi._util.sqlite import key_text

    return bytes.fromhex(key_text(key)[2:-1])[32:]
