"""How often one may sign in, register, set a password, ask about a certificate; and how much one may ask for.

Narrow limits come first. Those «in all» are far above what a whole network's people do, and stop what comes from
everywhere at once.
"""

from ipaddress import IPv6Address, ip_address, ip_network

from ekoyka.rates import Limit

# Of the cost that one account may ask for in a minute: a portion, an address's share, everybody's.
_PORTION, _ADDRESS, _ALL = 1 / 20, 10, 200


def _place(address: str | None) -> str:
    """What of a network address one party holds: of IPv6 it is a whole network of the last 64 bits."""
    try:
        known = ip_address(address or "")
    except ValueError:
        return address or "?"
    return str(ip_network((known, 64), strict=False) if isinstance(known, IPv6Address) else known)


def sign_in(email: str, address: str | None, *, known_there: bool) -> tuple[Limit, ...]:
    """The limits of a sign-in: of the account, existing or not, of the network address, and in all.

    Ten guesses are free, then they get slower. From an address where the account has signed in before they are
    counted apart and not in all, so that strangers' guesses elsewhere keep nobody from their own work.
    """
    who = email.strip().casefold()[:300]
    place = sign_in_from(address)
    if known_there:
        return Limit("sign-in here", f"{who}\0{address}", 10, 86_400, slower=True), place
    return Limit("sign-in", who, 10, 86_400, slower=True), place, Limit("sign-in in all", "", 3000, 600)


def sign_in_from(address: str | None) -> Limit:
    """The limit of sign-ins of all accounts from a network address."""
    return Limit("sign-in from", _place(address), 300, 3600)


def registration(address: str | None) -> tuple[Limit, ...]:
    """The limits of registrations: a hospital's address is one for many people."""
    return Limit("register from", _place(address), 30, 3600), Limit("register in all", "", 600, 3600)


def taken(address: str | None, *, told: bool) -> tuple[Limit, ...]:
    """The limits of being told that an e-mail address has an account; asked about before anybody registers.

    A person mistakes their own once or twice.
    """
    return (
        Limit("taken from", _place(address), 3, 86_400, slower=True, weight=int(told)),
        Limit("taken in all", "", 60, 3600, weight=int(told)),
    )


def password_change(account_id: int) -> Limit:
    """The limit of guesses of the present password by whoever holds an access token."""
    return Limit("password of", str(account_id), 10, 86_400, slower=True)


def password_reset(address: str | None) -> tuple[Limit, ...]:
    """The limits of codes for a new password tried out."""
    return Limit("reset from", _place(address), 30, 3600), Limit("reset in all", "", 600, 3600)


def verification(address: str | None) -> tuple[Limit, ...]:
    """The limits of questions about certificates; codes cannot be tried out."""
    return Limit("verify from", _place(address), 60, 60), Limit("verify in all", "", 3000, 60)


def download(address: str | None) -> tuple[Limit, ...]:
    """The limits of certificates fetched."""
    return Limit("download from", _place(address), 120, 60), Limit("download in all", "", 3000, 60)


def spending(who: str, address: str | None, cost_per_minute: int) -> tuple[Limit, ...]:
    """The limits of what expensive operations cost, to be fetched in portions."""
    portion = max(1, int(cost_per_minute * _PORTION))
    return (
        Limit("cost of", who, cost_per_minute, 60, weight=portion),
        Limit("cost from", _place(address), cost_per_minute * _ADDRESS, 60, weight=portion),
        Limit("cost in all", "", cost_per_minute * _ALL, 60, weight=portion),
    )
