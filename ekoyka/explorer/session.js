// The browser's session, where nobody has typed a token into the Headers tab: cookies carry it, and each
// request says the CSRF token beside them.
const root = document.getElementById("root");

const csrfToken = () =>
  document.cookie
    .split("; ")
    .find((part) => part.startsWith(`${root.dataset.csrfCookie}=`))
    ?.slice(root.dataset.csrfCookie.length + 1);

const beside = () => (csrfToken() ? { "X-CSRF-Token": csrfToken() } : {});

const isUnauthenticated = (answer) =>
  answer?.errors?.some((error) => error.extensions?.code === "UNAUTHENTICATED") ?? false;

async function ask(query) {
  const answer = await fetch(root.dataset.endpoint, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...beside() },
    body: JSON.stringify({ query }),
  });
  return answer.json();
}

// The pages of one browser share a refresh token, which is good once: they renew one after the other, and
// whoever has waited looks first whether it is done already.
const renew = () =>
  navigator.locks.request("ekoyka", async () => {
    if (isUnauthenticated(await ask("{ me { id } }"))) {
      await ask("mutation { tokenRefresh(input: {}) { __typename } }");
    }
  });

export const carried = (fetcher) => async (params, options) => {
  const typed = options?.headers ?? {};
  const hasToken = Object.keys(typed).some((name) => name.toLowerCase() === "authorization");
  if (hasToken || !csrfToken()) return fetcher(params, options);
  const send = () => fetcher(params, { ...options, headers: { ...beside(), ...typed } });
  const watches = options?.documentAST?.definitions.some(({ operation }) => operation === "subscription");
  if (watches) await renew();
  const answer = await send();
  if (!isUnauthenticated(answer)) return answer;
  await renew();
  return send();
};
