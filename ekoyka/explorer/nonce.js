// Style sheets that Monaco makes in the page are trusted as the page's own files are: by its nonce.
const { nonce } = document.querySelector("script[nonce]");
const create = document.createElement.bind(document);
document.createElement = (name, options) => {
  const made = create(name, options);
  if (name.toLowerCase() === "style") made.nonce = nonce;
  return made;
};
