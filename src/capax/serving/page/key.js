// The API key: kept for this tab only, sent to this server only.

const NAME = "capax.key";
let key = read();

/** Return the key, "" if there is none. */
export function apiKey() {
  return key;
}

/** Remember the key until the tab is closed. */
export function setApiKey(value) {
  key = value.trim();
  try {
    if (key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
  } catch {
    // Without storage it is remembered until the page is reloaded.
  }
}

function read() {
  try {
    return sessionStorage.getItem(NAME) ?? "";
  } catch {
    return "";
  }
}
