"""How often one may try to sign in, to register, to ask about a certificate."""

from ekoyka.rates import Limit


def sign_in(email: str, address: str | None, *, known_there: bool) -> tuple[Limit, ...]:
    """The limits of a sign-in: of the account, existing or not, and of the network address.

    Ten guesses are free, then they get slower. From an address where the account has signed in before they are
    counted apart, so that a stranger's guesses elsewhere keep nobody from their own work.
    """
    who = email.strip().casefold()[:300]
    where = address or "?"
    account = (
        Limit("sign-in here", f"{who}\0{where}", 10, 86_400, slower=True)
        if known_there
        else Limit("sign-in", who, 10, 86_400, slower=True)
    )
    return account, sign_in_from(address)


def sign_in_from(address: str | None) -> Limit:
    """The limit of sign-ins of all accounts from a network address."""
    return Limit("sign-in from", address or "?", 300, 3600)


def registration(address: str | None) -> Limit:
    """The limit of registrations from a network address: a hospital's is one for many people."""
    return Limit("register from", address or "?", 30, 3600)


def verification(address: str | None) -> Limit:
    """The limit of questions about certificates from a network address; codes cannot be tried out."""
    return Limit("verify from", address or "?", 60, 60)
