"""The explorer: GraphiQL for people who look at the graph in a browser, also on a closed network.

Owns the page, its content security policy and the first document it shows. Its assets are built from npm
(`make assets`) into ``ekoyka/static/explorer/<version>/``, where ``<version>`` changes with their content;
nothing is ever loaded from another address.
"""

from html import escape
from pathlib import Path

_ASSETS = Path(__file__).resolve().parent.parent / "static" / "explorer"

FIRST_DOCUMENT = """\
# ЭКойка. Сначала войдите: впишите почту и пароль
# в SignIn и запустите его (▶ или Ctrl+Enter).
# Скопируйте accessToken во вкладку Headers внизу:
#   {"Authorization": "Bearer <accessToken>"}
# и запустите Dispensaries. Описание всех полей слева
# вверху, подсказки по Ctrl+Пробел.
#
# EKoyka. Sign in first: write your e-mail and
# password into SignIn and run it (▶ or Ctrl+Enter).
# Copy the accessToken into the Headers tab below:
#   {"Authorization": "Bearer <accessToken>"}
# and run Dispensaries. Every field is described at the
# top left; Ctrl+Space completes.

mutation SignIn {
  signIn(input: {email: "", password: ""}) {
    ... on Tokens {
      accessToken
    }
    ... on Refusal {
      message
    }
  }
}

query Dispensaries {
  dispensaries(first: 5) {
    edges {
      node {
        id
        name
        bedCounts {
          total
          free
        }
      }
    }
  }
}
"""

SIGNED_IN_DOCUMENT = """\
# ЭКойка. Вы вошли: запускайте (▶ или Ctrl+Enter).
# Описание всех полей слева вверху, подсказки
# по Ctrl+Пробел. Уходя с общего компьютера,
# запустите SignOut.
#
# EKoyka. You are signed in: run things (▶ or
# Ctrl+Enter). Every field is described at the top
# left; Ctrl+Space completes. Leaving a computer that
# others use, run SignOut.

query Dispensaries {
  dispensaries(first: 5) {
    edges {
      node {
        id
        name
        bedCounts {
          total
          free
        }
      }
    }
  }
}

mutation SignOut {
  signOut(input: {}) {
    ... on SignedOut {
      done
    }
  }
}
"""

_PAGE = """\
<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>EKoyka GraphiQL</title>
<link rel="icon" href="data:,">
{head}</head>
<body>
{body}</body>
</html>
"""
_HEAD = """\
<link rel="stylesheet" href="/static/explorer/{version}/explorer.css">
<script type="module" nonce="{nonce}" src="/static/explorer/{version}/explorer.js"></script>
"""
_ROOT = """\
<div id="root" data-endpoint="{endpoint}" data-csrf-cookie="{csrf_cookie}" data-document="{document}"></div>
<noscript>Для GraphiQL нужен JavaScript. <span lang="en">GraphiQL needs JavaScript.</span></noscript>
"""
_NOT_BUILT = """\
<h1>GraphiQL не собран</h1>
<p>Установите <a href="https://nodejs.org">Node.js</a> 20.11 или новее, выполните в папке проекта
<code>make assets</code> и обновите эту страницу: перезапуск не нужен.</p>
<p>Само API работает и без этого: <code>POST {endpoint}</code>.</p>
<div lang="en">
<h1>GraphiQL is not built</h1>
<p>Install <a href="https://nodejs.org">Node.js</a> 20.11 or newer, run <code>make assets</code> in the
project's folder and reload this page; no restart is needed.</p>
<p>The API itself works without it: <code>POST {endpoint}</code>.</p>
</div>
"""


def _version() -> str | None:
    return next((script.parent.name for script in sorted(_ASSETS.glob("*/explorer.js"))), None)


def assets_present() -> bool:
    """Whether `make assets` has built the explorer; looked up at each call, so no restart is needed."""
    return _version() is not None


def content_security_policy(nonce: str) -> str:
    """The policy of the page with the same ``nonce``: scripts from it alone, everything from this origin.

    Monaco places each line of text by a ``style`` attribute in HTML that it puts together as text, which no nonce
    can cover, hence ``'unsafe-inline'`` for attributes: they can load nothing that the rest does not allow. The
    style sheets that it makes have the nonce. Its fonts and pictures are ``data:`` addresses in the style sheet.
    ``'self'`` covers the WebSocket of the same host.
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'nonce-{nonce}'",
            f"style-src 'self' 'nonce-{nonce}'",
            "style-src-attr 'unsafe-inline'",
            "worker-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "font-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def page(
    *,
    graphql_path: str = "/graphql",
    nonce: str,
    csrf_cookie: str = "ekoyka_csrf",
    signed_in: bool = False,
) -> str:
    """The explorer's HTML, or how to get it where its assets are not built.

    Served with `content_security_policy` of the same ``nonce``, which is new for every answer. Whoever has not
    ``signed_in`` is told how to; ``csrf_cookie`` is where the page finds its CSRF token once somebody has.
    """
    version, endpoint = _version(), escape(graphql_path)
    if version is None:
        return _PAGE.format(language="ru", head="", body=_NOT_BUILT.format(endpoint=endpoint))
    return _PAGE.format(
        language="en",
        head=_HEAD.format(version=version, nonce=escape(nonce)),
        body=_ROOT.format(
            endpoint=endpoint,
            csrf_cookie=escape(csrf_cookie),
            document=escape(SIGNED_IN_DOCUMENT if signed_in else FIRST_DOCUMENT),
        ),
    )
