"""The network cards of this host: which there are, and which one leads to another host. Linux."""

import fcntl
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

SIOCGIFADDR, SIOCGIFMTU = 0x8915, 0x8921
"""netdevice(7)"""


@dataclass(frozen=True)
class Card:
    """A network interface."""

    name: str
    address: str
    mtu: int


def cards() -> list[Card]:
    """The interfaces of this host that have an address, one entry an address."""
    found = [Card(name, address, _mtu(name)) for _, name in socket.if_nameindex() if (address := ipv4_of(name))]
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else ():
        digits, *_, name = line.split()
        found.append(Card(name, socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)), _mtu(name)))
    return found


def card_of(address: str) -> Card:
    """The card that has an address; one without a name when none is known to have it."""
    return next((card for card in cards() if card.address == address), Card("", address, 0))


def address_towards(address: str) -> str:
    """This host's own address on the way to another; nothing is sent. OSError without a way."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return str(probe.getsockname()[0])


def can_listen(address: str) -> bool:
    """Whether this host has the address, IPv4 or IPv6."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def ipv4_of(name: str) -> str:
    """A card's IPv4 address; "" for none."""
    answer = _ask(name, SIOCGIFADDR)
    return socket.inet_ntoa(answer[20:24]) if answer else ""


def _mtu(name: str) -> int:
    answer = _ask(name, SIOCGIFMTU)
    return int(struct.unpack("16xi", answer[:20])[0]) if answer else 0


def _ask(name: str, request: int) -> bytes:
    """The kernel's answer about a card; nothing when it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return bytes(fcntl.ioctl(probe, request, struct.pack("256s", name.encode()[:15])))
        except OSError:
            return b""
