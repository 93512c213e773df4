// A certified OpenID Connect provider. What somebody calls themself says what it knows of them: `7:anna@example.org`
// is its person of this name with this address; with `!` in it the address is not verified, and without an `@`
// there is none.
import Provider from "oidc-provider";

const { PORT, HOST = "127.0.0.1", CLIENT_ID, CLIENT_SECRET, REDIRECT_URI } = process.env;

const provider = new Provider(`http://${HOST}:${PORT}`, {
  clients: [{ client_id: CLIENT_ID, client_secret: CLIENT_SECRET, redirect_uris: [REDIRECT_URI] }],
  pkce: { required: () => true },
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"] },
  // As Keycloak does it, what is known stands in the ID token; for another half of the tests it is asked for.
  conformIdTokenClaims: process.env.ASK_USERINFO === "true",
  features: { devInteractions: { enabled: true } },
  findAccount: (_context, id) => ({
    accountId: id,
    claims: () => ({
      sub: id,
      name: "Анна Иванова",
      ...(id.includes("@") ? { email: id.split(":")[1], email_verified: !id.includes("!") } : {}),
    }),
  }),
});
provider.listen(Number(PORT), "127.0.0.1", () => console.log("listening"));
